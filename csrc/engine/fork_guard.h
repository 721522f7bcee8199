// fork_guard.h: threads and locks do not survive fork(); what owns them refuses to work in the child.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include "core/error.h"

namespace gemmantle {

inline void refuse_in_child(pid_t owner) {
  if (::getpid() == owner) return;
  throw Error(ErrorCode::forked,
              str("this engine was loaded in process ", owner, " and cannot be used in its forked child ", ::getpid(),
                  ": start workers with the 'spawn' method, or load the model in the child"));
}

}  // namespace gemmantle
