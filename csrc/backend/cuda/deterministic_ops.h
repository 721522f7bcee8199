// deterministic_ops.h: CudaOps in which a row has the same bits alone, in a batch and in any chunk.
//
// Products, experts and attention have kernels for few rows and for many, which sum in different orders. Here every row
// goes through those for few, and its keys are not split: prompts are slower, single rows only in long contexts.
#pragma once

#include "backend/cuda/cuda_ops.h"

namespace gemmantle::cuda {

class DeterministicOps final : public CudaOps {
 public:
  using CudaOps::CudaOps;

  void head(Tensor y, Tensor x, const Weight& w, float cap) override;  // and linear
  void experts(Tensor y, Tensor x, Routing routing, const Weight& gate_up, const Weight& up, const Weight& down,
               Tensor scratch) override;
  void geglu(Tensor y, Tensor x, const Weight& gate, const Weight& up, const Weight& down, Tensor scratch) override;

 private:
  bool takes_prompt_tiles(std::span<const int32_t>) const override { return false; }
  int splits_for(int, int, int) const override { return 1; }
};

}  // namespace gemmantle::cuda
