// bind_text.cpp: Vocabulary (id -> bytes) and Channels (content, thought, call).
#include <map>
#include <utility>

#include "bindings/convert.h"
#include "bindings/words.h"
#include "text/channels.h"

namespace gemmantle::bindings {
namespace {

SpecialIds to_special(const std::map<std::string, long long>& special) {
  SpecialIds out;
  for (const auto& [spelling, id] : special) out.emplace(spelling, to_id(id, "special"));
  return out;
}

py::list pieces_of(const std::vector<Piece>& pieces) {
  py::list out;
  for (const Piece& piece : pieces) out.append(py::make_tuple(name(piece.channel), to_bytes(piece.text)));
  return out;
}

}  // namespace

void bind_text(py::module_& m) {
  py::class_<PyVocabulary>(m, "Vocabulary", "What every id stands for, for text that comes out of an engine.")
      .def(py::init([](const std::vector<py::bytes>& pieces, const std::vector<long long>& control,
                       const std::map<std::string, long long>& special) {
             std::vector<std::string> texts;
             texts.reserve(pieces.size());
             for (const py::bytes& piece : pieces) texts.emplace_back(std::string_view(piece));
             return PyVocabulary{
                 std::make_shared<const Vocabulary>(texts, to_ids(control, "control"), to_special(special))};
           }),
           py::arg("pieces"), py::arg("control"), py::arg("special"),
           "pieces[id]: the exact bytes of an id. control: ids that never become text. special: spelling -> id.\n\n"
           "Raises RequestError for an id outside of pieces.")
      .def(
          "__len__", [](const PyVocabulary& self) { return self.words->size(); }, "Number of ids.");

  py::class_<Channels>(m, "Channels", "Follows control ids: which text is content, thought or tool call.")
      .def(py::init([](const std::map<std::string, long long>& special, bool start_in_thought) {
             return Channels(to_special(special), start_in_thought);
           }),
           py::arg("special"), py::arg("start_in_thought") = false)
      .def(
          "feed",
          [](Channels& self, long long id, const py::bytes& text) {
            return pieces_of(self.feed(to_id(id, "id"), std::string_view(text)));
          },
          py::arg("id"), py::arg("text"),
          "The (channel, text) pieces of one id and its text; channel is content, thought, call or call_end.")
      .def(
          "finish", [](Channels& self) { return pieces_of(self.finish()); }, "What was held back.");
}

}  // namespace gemmantle::bindings
