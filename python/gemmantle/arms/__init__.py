"""Who answers: the remote arm, and the rules by which a local client may hand a request to it (spec api 9).

Nothing in here runs, and nothing is sent, unless a caller makes a `gemmantle.remote(...)`.
"""
