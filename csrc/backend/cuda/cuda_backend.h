// cuda_backend.h: device "cuda": one GPU, its memory and its stream.
//
// Activations are f32, K and V bf16; products take activations rounded to bf16 and sum in f32, in either mode.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace gemmantle::cuda {

// Throws unsupported where the device is older than sm_80, invalid_argument for K and V that are not bf16.
std::unique_ptr<Backend> make_backend(const BackendOptions& options);

}  // namespace gemmantle::cuda
