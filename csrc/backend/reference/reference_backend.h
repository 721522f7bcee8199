// reference_backend.h: device "reference": the definition of every op, on one thread.
//
// f32 buffers, sums in double; Eigen multiplies, plain loops do the rest. Written for reading and for being right; the
// other backends are measured against it.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace gemmantle {

std::unique_ptr<Backend> make_reference_backend(const BackendOptions& options);

}  // namespace gemmantle
