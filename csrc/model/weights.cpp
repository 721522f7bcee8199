#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <unordered_set>

#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "core/mapped_file.h"
#include "model/rope_frequencies.h"

namespace gemmantle {
namespace {

using Shape = std::vector<int64_t>;

bool always(const ModelConfig&, const LayerSpec&) { return true; }
bool has_per_layer(const ModelConfig& c, const LayerSpec&) { return c.per_layer > 0; }
bool has_moe(const ModelConfig& c, const LayerSpec&) { return c.has_moe(); }
bool is_gemma4(const ModelConfig& c, const LayerSpec&) { return c.family == Family::gemma4; }

Shape hidden(const ModelConfig& c, const LayerSpec&) { return {c.hidden}; }
Shape head(const ModelConfig&, const LayerSpec& s) { return {s.heads.dim}; }
Shape one(const ModelConfig&, const LayerSpec&) { return {1}; }

// The tensors of a layer. `name` follows "layers.N.", `gguf` follows "blk.N.".
struct VectorRow {
  const char* name;
  const char* gguf;
  const float* LayerWeights::*field;
  Shape (*shape)(const ModelConfig&, const LayerSpec&);
  bool (*needed)(const ModelConfig&, const LayerSpec&);
  bool is_norm;  // Gemma 3 safetensors store these less one
  bool owner;    // only in layers that write their own K and V
};

struct MatrixRow {
  const char* name;
  const char* gguf;
  Weight LayerWeights::*field;
  Shape (*shape)(const ModelConfig&, const LayerSpec&);
  bool (*needed)(const ModelConfig&, const LayerSpec&);
  bool owner;
};

constexpr bool kNorm = true, kPlain = false, kOwner = true, kEvery = false;

const VectorRow kVectors[] = {
    {"input_layernorm.weight", "attn_norm.weight", &LayerWeights::input_norm, hidden, always, kNorm, kEvery},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", &LayerWeights::q_norm, head, always, kNorm, kEvery},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", &LayerWeights::k_norm, head, always, kNorm, kOwner},
    {"post_attention_layernorm.weight", "post_attention_norm.weight", &LayerWeights::post_attention_norm, hidden,
     always, kNorm, kEvery},
    {"pre_feedforward_layernorm.weight", "ffn_norm.weight", &LayerWeights::pre_ffn_norm, hidden, always, kNorm, kEvery},
    {"post_feedforward_layernorm.weight", "post_ffw_norm.weight", &LayerWeights::post_ffn_norm, hidden, always, kNorm,
     kEvery},
    {"pre_feedforward_layernorm_2.weight", "pre_ffw_norm_2.weight", &LayerWeights::pre_ffn_norm_2, hidden, has_moe,
     kNorm, kEvery},
    {"post_feedforward_layernorm_1.weight", "post_ffw_norm_1.weight", &LayerWeights::post_ffn_norm_1, hidden, has_moe,
     kNorm, kEvery},
    {"post_feedforward_layernorm_2.weight", "post_ffw_norm_2.weight", &LayerWeights::post_ffn_norm_2, hidden, has_moe,
     kNorm, kEvery},
    {"post_per_layer_input_norm.weight", "post_norm.weight", &LayerWeights::post_per_layer_norm, hidden, has_per_layer,
     kNorm, kEvery},
    {"router.scale", "ffn_gate_inp.scale", &LayerWeights::router_scale, hidden, has_moe, kPlain, kEvery},
    {"router.per_expert_scale", "ffn_down_exps.scale", &LayerWeights::expert_scale,
     [](const ModelConfig& c, const LayerSpec&) { return Shape{c.experts}; }, has_moe, kPlain, kEvery},
};

const MatrixRow kMatrices[] = {
    {"self_attn.q_proj.weight", "attn_q.weight", &LayerWeights::q,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{s.heads.q_dim(), c.hidden};
     },
     always, kEvery},
    {"self_attn.k_proj.weight", "attn_k.weight", &LayerWeights::k,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{s.heads.kv_dim(), c.hidden};
     },
     always, kOwner},
    {"self_attn.v_proj.weight", "attn_v.weight", &LayerWeights::v,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{s.heads.kv_dim(), c.hidden};
     },
     [](const ModelConfig&, const LayerSpec& s) { return !s.value_is_key; }, kOwner},
    {"self_attn.o_proj.weight", "attn_output.weight", &LayerWeights::o,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{c.hidden, s.heads.q_dim()};
     },
     always, kEvery},
    {"mlp.gate_proj.weight", "ffn_gate.weight", &LayerWeights::gate,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{s.ffn, c.hidden};
     },
     always, kEvery},
    {"mlp.up_proj.weight", "ffn_up.weight", &LayerWeights::up,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{s.ffn, c.hidden};
     },
     always, kEvery},
    {"mlp.down_proj.weight", "ffn_down.weight", &LayerWeights::down,
     [](const ModelConfig& c, const LayerSpec& s) {
       return Shape{c.hidden, s.ffn};
     },
     always, kEvery},
    {"per_layer_input_gate.weight", "inp_gate.weight", &LayerWeights::per_layer_gate,
     [](const ModelConfig& c, const LayerSpec&) {
       return Shape{c.per_layer, c.hidden};
     },
     has_per_layer, kEvery},
    {"per_layer_projection.weight", "proj.weight", &LayerWeights::per_layer_projection,
     [](const ModelConfig& c, const LayerSpec&) {
       return Shape{c.hidden, c.per_layer};
     },
     has_per_layer, kEvery},
    {"router.proj.weight", "ffn_gate_inp.weight", &LayerWeights::router,
     [](const ModelConfig& c, const LayerSpec&) {
       return Shape{c.experts, c.hidden};
     },
     has_moe, kEvery},
    {"experts.down_proj", "ffn_down_exps.weight", &LayerWeights::experts_down,
     [](const ModelConfig& c, const LayerSpec&) {
       return Shape{c.experts, c.hidden, c.expert_ffn};
     },
     has_moe, kEvery},
};

// Gate and up projections of the experts come in one tensor or in two.
constexpr MatrixRow kExpertsGateUp = {"experts.gate_up_proj",
                                      "ffn_gate_up_exps.weight",
                                      &LayerWeights::experts_gate_up,
                                      [](const ModelConfig& c, const LayerSpec&) {
                                        return Shape{c.experts, 2 * c.expert_ffn, c.hidden};
                                      },
                                      has_moe,
                                      kEvery};
constexpr MatrixRow kExpertsGate = {"experts.gate_proj",
                                    "ffn_gate_exps.weight",
                                    &LayerWeights::experts_gate_up,
                                    [](const ModelConfig& c, const LayerSpec&) {
                                      return Shape{c.experts, c.expert_ffn, c.hidden};
                                    },
                                    has_moe,
                                    kEvery};
constexpr MatrixRow kExpertsUp = {"experts.up_proj",
                                  "ffn_up_exps.weight",
                                  &LayerWeights::experts_up,
                                  [](const ModelConfig& c, const LayerSpec&) {
                                    return Shape{c.experts, c.expert_ffn, c.hidden};
                                  },
                                  has_moe,
                                  kEvery};

// Tensors outside the decoder, read by nobody here: towers, projectors, and the mark of a quantisation's origin.
constexpr const char* kSkippedPrefixes[] = {"vision_tower.", "audio_tower.",  "embed_vision.",
                                            "embed_audio.",  "vision_model.", "multi_modal_projector."};

std::string words(const Shape& shape) {
  std::string out = "[";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + "]";
}

int64_t product(const Shape& shape) {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

// Finds tensors by table row and remembers which ones were asked for.
class Binder {
 public:
  Binder(const Checkpoint& checkpoint, const ModelConfig& config) : checkpoint_(checkpoint), config_(config) {
    if (checkpoint.container() == Container::gguf) return;
    for (const char* outer : {"", "base_model.model."}) {
      for (const char* inner : {"model.language_model.", "language_model.model.", "model.", ""}) {
        const std::string prefix = std::string(outer) + inner;
        const std::string name = prefix + "embed_tokens.weight";
        if (checkpoint.find(name) != nullptr || checkpoint.unreadable(name) != nullptr) {
          prefix_ = prefix;
          return;
        }
      }
    }
    throw Error(ErrorCode::corrupt_file,
                str(checkpoint.path(),
                    ": no tensor 'embed_tokens.weight' under any known prefix (model.language_model., "
                    "language_model.model., model.): is this a whole checkpoint, not an adapter?"));
  }

  bool gguf() const { return checkpoint_.container() == Container::gguf; }

  std::string name(int layer, const char* hf, const char* gguf_name) const {
    if (gguf()) return layer < 0 ? gguf_name : str("blk.", layer, ".", gguf_name);
    return layer < 0 ? prefix_ + hf : str(prefix_, "layers.", layer, ".", hf);
  }

  const StoredTensor* find(const std::string& full) {
    known_.insert(full);
    return checkpoint_.find(full);
  }

  const StoredTensor& get(const std::string& full, const Shape& wanted) {
    const StoredTensor* t = find(full);
    if (t == nullptr) {
      const std::string* why = checkpoint_.unreadable(full);
      throw Error(why != nullptr ? ErrorCode::unsupported : ErrorCode::corrupt_file,
                  why != nullptr ? str("tensor '", full, "': ", *why)
                                 : str("tensor '", full, "' is missing from ", checkpoint_.path(), "; wanted shape ",
                                       words(wanted), " (is a shard missing, or config.json of another variant?)"));
    }
    // A scalar may be stored as [] or [1].
    if (t->shape != wanted && !(product(wanted) == 1 && t->elements() == 1)) {
      throw Error(ErrorCode::corrupt_file,
                  str("tensor '", full, "' has shape ", words(t->shape), "; the configuration needs ", words(wanted),
                      " (is this checkpoint from another variant?)"));
    }
    return *t;
  }

  // A tensor of the decoder that nothing reads would make the answers silently wrong (biases, adapters, scales).
  void refuse_unknown() const {
    for (const StoredTensor& t : checkpoint_.tensors()) {
      if (known_.count(t.name) != 0) continue;
      std::string_view rest = t.name;
      if (gguf()) {
        if (!rest.starts_with("blk.")) continue;
      } else {
        if (!rest.starts_with(prefix_)) continue;
        rest.remove_prefix(prefix_.size());
        if (std::any_of(std::begin(kSkippedPrefixes), std::end(kSkippedPrefixes),
                        [&](const char* p) { return rest.starts_with(p); }))
          continue;
        if (prefix_.empty() && rest.starts_with("model.")) continue;
      }
      throw Error(ErrorCode::unsupported, str("tensor '", t.name, "' is not part of the ", config_.model_type,
                                              " decoder; merge adapters and remove extra tensors before loading"));
    }
  }

 private:
  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  std::string prefix_;
  std::unordered_set<std::string> known_;
};

std::vector<float> read_vector(const StoredTensor& t, bool add_one) {
  std::vector<float> values(static_cast<size_t>(t.elements()));
  StoredTensor flat = t;
  flat.shape = {1, t.elements()};
  read_rows(flat, 0, 1, values.data());
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) {
      throw Error(ErrorCode::corrupt_file, str("tensor '", t.name, "' holds ", values[i], " at [", i,
                                               "]: the file is damaged, download it again"));
    }
    if (add_one) values[i] += 1.0f;
  }
  return values;
}

}  // namespace

void ModelWeights::add(int layer, const StoredTensor& stored) {
  used_.push_back({layer, &stored});
  parameters += stored.elements();
  bytes += static_cast<int64_t>(stored.bytes.size());
}

const float* ModelWeights::upload(std::vector<float> values, Backend& backend) {
  buffers_.push_back(backend.upload(values.data(), values.size() * sizeof(float)));
  return reinterpret_cast<const float*>(buffers_.back().data);
}

ModelWeights::ModelWeights(std::shared_ptr<const Checkpoint> checkpoint, const ModelConfig& config,
                           const BackendOfPart& backend_of)
    : checkpoint_(std::move(checkpoint)) {
  Binder binder(*checkpoint_, config);
  std::set<std::string> met;

  Backend& embedder = backend_of(kEmbeddingPart);
  Backend& header = backend_of(kHeadPart);
  auto place = [&](const StoredTensor& t, Backend& backend) {
    Weight w;
    w.format = t.format;
    w.cols = t.shape.back();
    w.count = t.shape.size() == 3 ? static_cast<int32_t>(t.shape[0]) : 1;
    w.rows = t.shape[t.shape.size() - 2];
    w.row_bytes = row_bytes(t.format, w.cols);
    w.data = t.bytes.data();
    return backend.place(w, checkpoint_);
  };
  auto matrix = [&](int layer, const StoredTensor& t, Backend& backend) {
    add(layer, t);
    met.insert(format_name(t.format));
    return place(t, backend);
  };
  auto norm = [&](const StoredTensor& t, Backend& backend) {
    return upload(read_vector(t, config.norm_adds_one), backend);
  };

  const int64_t layer_count = static_cast<int64_t>(config.layers.size());
  const StoredTensor& table =
      binder.get(binder.name(-1, "embed_tokens.weight", "token_embd.weight"), {config.vocab, config.hidden});
  embedding = matrix(-1, table, embedder);
  const std::string untied = binder.gguf() ? "output.weight" : "lm_head.weight";
  is_tied = binder.find(untied) == nullptr;
  if (!is_tied) {
    head = matrix(-1, binder.get(untied, {config.vocab, config.hidden}), header);
  } else {
    head = &header == &embedder ? embedding : place(table, header);
  }
  if (config.per_layer > 0) {
    const int64_t width = layer_count * config.per_layer;
    const StoredTensor& rows = binder.get(
        binder.name(-1, "embed_tokens_per_layer.weight", "per_layer_token_embd.weight"), {config.vocab, width});
    expect_single_rows(rows.bytes);
    per_layer_embedding = matrix(-1, rows, embedder);
    if (per_layer_embedding.data == rows.bytes.data()) mapped_rows = rows.bytes;
    per_layer_model_projection =
        matrix(-1,
               binder.get(binder.name(-1, "per_layer_model_projection.weight", "per_layer_model_proj.weight"),
                          {width, config.hidden}),
               embedder);
    const StoredTensor& t = binder.get(
        binder.name(-1, "per_layer_projection_norm.weight", "per_layer_proj_norm.weight"), {config.per_layer});
    add(-1, t);
    per_layer_norm = norm(t, embedder);
  }

  layers.resize(config.layers.size());
  for (int l = 0; l < static_cast<int>(layers.size()); ++l) {
    const LayerSpec& spec = config.layers[static_cast<size_t>(l)];
    LayerWeights& w = layers[static_cast<size_t>(l)];
    const bool owns = spec.kv_source == l;
    Backend& backend = backend_of(l);
    for (const VectorRow& row : kVectors) {
      const std::string full = binder.name(l, row.name, row.gguf);
      if (row.owner && !owns) {
        binder.find(full);  // released files carry it, nothing reads it: architecture 2.7
      } else if (row.needed(config, spec)) {
        const StoredTensor& t = binder.get(full, row.shape(config, spec));
        add(l, t);
        w.*row.field = upload(read_vector(t, row.is_norm && config.norm_adds_one), backend);
      }
    }
    for (const MatrixRow& row : kMatrices) {
      const std::string full = binder.name(l, row.name, row.gguf);
      if ((row.owner && !owns) || (row.field == &LayerWeights::v && spec.value_is_key)) {
        binder.find(full);
      } else if (row.needed(config, spec)) {
        w.*row.field = matrix(l, binder.get(full, row.shape(config, spec)), backend);
      }
    }
    if (config.has_moe()) {
      const bool split = binder.find(binder.name(l, kExpertsGateUp.name, kExpertsGateUp.gguf)) == nullptr &&
                         binder.find(binder.name(l, kExpertsGate.name, kExpertsGate.gguf)) != nullptr;
      for (const MatrixRow* row : {split ? &kExpertsGate : &kExpertsGateUp, split ? &kExpertsUp : nullptr}) {
        if (row == nullptr) continue;
        w.*row->field = matrix(l, binder.get(binder.name(l, row->name, row->gguf), row->shape(config, spec)), backend);
      }
    }
    if (is_gemma4(config, spec)) {
      const StoredTensor& t =
          binder.get(binder.name(l, "layer_scalar", "layer_output_scale.weight"), one(config, spec));
      add(l, t);
      w.scalar = read_vector(t, false)[0];
    }
    w.rope_freq = upload(rope_frequencies(spec), backend);
  }
  // A norm is wanted where the rows come from: by the layer before it, by the embedding.
  const auto input_norm = [&](int l, Backend& backend) {
    if (&backend == &backend_of(l)) return layers[static_cast<size_t>(l)].input_norm;
    return norm(binder.get(binder.name(l, kVectors[0].name, kVectors[0].gguf), {config.hidden}), backend);
  };
  const int last = static_cast<int>(layers.size()) - 1;
  first_norm = input_norm(0, embedder);
  for (int l = 0; l < last; ++l) layers[static_cast<size_t>(l)].next_norm = input_norm(l + 1, backend_of(l));
  const StoredTensor& last_norm = binder.get(binder.name(-1, "norm.weight", "output_norm.weight"), {config.hidden});
  add(-1, last_norm);
  layers.back().next_norm = norm(last_norm, backend_of(last));
  binder.refuse_unknown();
  formats.assign(met.begin(), met.end());
}

std::string ModelWeights::find_not_finite(int layer) const {
  std::vector<float> row;
  for (const Named& named : used_) {
    if (named.layer != layer) continue;
    const StoredTensor& t = *named.stored;
    const int64_t cols = t.shape.empty() ? 1 : t.shape.back();
    const int64_t rows = t.elements() / cols;
    StoredTensor flat = t;
    flat.shape = {rows, cols};
    row.resize(static_cast<size_t>(cols));
    for (int64_t r = 0; r < rows; ++r) {
      read_rows(flat, r, 1, row.data());
      for (int64_t c = 0; c < cols; ++c) {
        if (!std::isfinite(row[static_cast<size_t>(c)])) {
          return str("tensor '", t.name, "' holds ", row[static_cast<size_t>(c)], " at row ", r, ", column ", c);
        }
      }
    }
  }
  return {};
}

}  // namespace gemmantle
