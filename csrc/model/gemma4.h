// gemma4.h: THE GRAPH. One decoder forward pass over a flat batch of rows.
//
// A straight line over the layers; every fact of a layer comes from its LayerSpec, every number from Ops. Gemma 3 text
// is the same line without value norm, layer scalar and soft-cap. architecture 2, 6.
#pragma once

#include "backend/ops.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace gemmantle {

// Runs `all` up to the layer that last writes KV, and the rows of `tail` (those whose logits are wanted, the same
// rows when they are all) through the rest. Tag 0 of Ops::check_finite is the embedding,
// tag l + 1 the output of layer l.
void decoder_forward(Ops& ops, const ModelConfig& config, const ModelWeights& weights, Activations& a,
                     const KvCache& kv, const Batch& all, const Batch& tail);

}  // namespace gemmantle
