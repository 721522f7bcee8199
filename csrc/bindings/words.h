// words.h: what the bindings hold for a Python Vocabulary.
#pragma once

#include <memory>

#include "text/vocabulary.h"

namespace gemmantle::bindings {

// Shared with the engines that use it.
struct PyVocabulary {
  std::shared_ptr<const Vocabulary> words;
};

}  // namespace gemmantle::bindings
