"""What a model and this machine can do: speed, memory and fidelity. The command is `gemmantle bench`."""
