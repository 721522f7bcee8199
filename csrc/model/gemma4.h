// gemma4.h: THE GRAPH. One decoder forward pass over a flat batch of rows.
//
// A straight line over the layers; every fact of a layer comes from its LayerSpec, every number from Ops. Gemma 3 text
// is the same line without value norm, layer scalar and soft-cap. architecture 2, 6.
#pragma once

#include "backend/ops.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/placement.h"
#include "model/weights.h"

namespace gemmantle {

// Runs `all` up to the layer that last writes KV, and the rows of `tail` (those whose logits are wanted, the same
// rows when they are all) through the rest; of the line the stretch that one device holds, from and to `a`: x, normed
// and per_layer are what its neighbours hand over. Tag 0 of Ops::check_finite is the embedding, tag l + 1 the output of
// layer l.
void decoder_forward(Ops& ops, const ModelConfig& config, const DecoderWeights& weights, Activations& a,
                     const KvCache& kv, const Stretch& stretch, const Batch& all, const Batch& tail);

// The rows that enter `layer` (or, behind the last one, the head).
const Batch& rows_at(const ModelConfig& config, int layer, const Batch& all, const Batch& tail);

}  // namespace gemmantle
