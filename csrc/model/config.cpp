#include "model/config.h"

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"
#include "core/bytes.h"
#include "core/error.h"

namespace gemmantle {
namespace {

using Json = nlohmann::json;

// Bounds that no released model comes near; they keep products of sizes far from 2^63.
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxContext = int64_t{1} << 31;

constexpr size_t kShown = 100;  // bytes of a wrong value that a message repeats

float round_to_bf16(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  return std::bit_cast<float>(bits);
}

[[noreturn]] void bad(const std::string& where, const std::string& key, const std::string& found,
                      const std::string& wanted) {
  throw Error(ErrorCode::corrupt_file, str(where, ": '", key, "' is ", found, "; wanted ", wanted));
}

int64_t checked(const std::string& where, const std::string& key, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) bad(where, key, std::to_string(value), str(low, " to ", high));
  return value;
}

double checked_real(const std::string& where, const std::string& key, double value, double low, double high) {
  if (!(value >= low && value <= high)) bad(where, key, std::to_string(value), str(low, " to ", high));
  return value;
}

// Reads members of one JSON object, saying which one is wrong.
class Reader {
 public:
  Reader(std::string where, const Json& object) : where_(std::move(where)), object_(object) {
    if (!object.is_object()) bad(where_, "text configuration", object.type_name(), "an object");
  }

  // The member, or nullptr when it is absent or null: transformers writes null for "not in this variant".
  const Json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }
  bool has(const char* key) const { return find(key) != nullptr; }

  int64_t integer(const char* key, int64_t low, int64_t high) const {
    const Json* v = find(key);
    if (v == nullptr) bad(where_, key, "missing", "an integer");
    return to_integer(key, *v, low, high);
  }
  int64_t integer(const char* key, int64_t low, int64_t high, int64_t absent) const {
    return has(key) ? integer(key, low, high) : absent;
  }
  double real(const char* key, double low, double high, double absent) const {
    const Json* v = find(key);
    if (v == nullptr) return absent;
    if (!v->is_number()) bad(where_, key, quote(v->dump(), kShown), "a number");
    return checked_real(where_, key, v->get<double>(), low, high);
  }
  bool boolean(const char* key, bool absent) const {
    const Json* v = find(key);
    if (v == nullptr) return absent;
    if (!v->is_boolean()) bad(where_, key, quote(v->dump(), kShown), "true or false");
    return v->get<bool>();
  }
  std::string string(const char* key, const std::string& absent) const {
    const Json* v = find(key);
    if (v == nullptr) return absent;
    if (!v->is_string()) bad(where_, key, quote(v->dump(), kShown), "a string");
    return v->get<std::string>();
  }
  Reader object(const char* key) const {
    const Json* v = find(key);
    static const Json empty = Json::object();
    return Reader(where_ + " '" + key + "'", v == nullptr ? empty : *v);
  }
  int64_t to_integer(const std::string& key, const Json& v, int64_t low, int64_t high) const {
    if (!v.is_number_integer()) bad(where_, key, quote(v.dump(), kShown), "an integer");
    if (v.is_number_unsigned() && v.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) {
      bad(where_, key, v.dump(), str(low, " to ", high));
    }
    return checked(where_, key, v.get<int64_t>(), low, high);
  }
  const std::string& where() const { return where_; }

 private:
  std::string where_;
  const Json& object_;
};

void refuse(bool condition, const std::string& where, const std::string& what) {
  if (condition) throw Error(ErrorCode::unsupported, str(where, ": ", what));
}

// Sliding or not, for every layer.
std::vector<bool> read_pattern(const Reader& c, int64_t layers, int64_t absent_period) {
  std::vector<bool> sliding(static_cast<size_t>(layers));
  if (const Json* types = c.find("layer_types")) {
    if (!types->is_array() || static_cast<int64_t>(types->size()) != layers) {
      bad(c.where(), "layer_types", types->is_array() ? str(types->size(), " entries") : types->type_name(),
          str("a list of num_hidden_layers = ", layers, " entries"));
    }
    for (size_t i = 0; i < sliding.size(); ++i) {
      const Json& t = (*types)[i];
      const bool is_sliding = t == "sliding_attention";
      if (!is_sliding && t != "full_attention") {
        bad(c.where(), str("layer_types[", i, "]"), quote(t.dump(), kShown), "sliding_attention or full_attention");
      }
      sliding[i] = is_sliding;
    }
    return sliding;
  }
  const int64_t period = c.integer("sliding_window_pattern", 1, kMaxLayers, absent_period);
  for (size_t i = 0; i < sliding.size(); ++i) sliding[i] = (static_cast<int64_t>(i) + 1) % period != 0;
  return sliding;
}

void read_rope(const Reader& c, LayerSpec& spec, bool gemma4) {
  spec.rope_theta = spec.sliding ? 1e4 : 1e6;
  spec.rope_fraction = gemma4 && !spec.sliding ? 0.25 : 1.0;
  const Reader all = c.object("rope_parameters");
  const Reader p = all.object(spec.sliding ? "sliding_attention" : "full_attention");
  if (c.has("rope_parameters")) {
    const std::string type = p.string("rope_type", gemma4 && !spec.sliding ? "proportional" : "default");
    refuse(type != "default" && type != "proportional" && type != "linear", p.where(),
           "rope_type " + quote(type, kShown) + " is not one this decoder knows (default, proportional, linear)");
    spec.rope_theta = p.real("rope_theta", 1, 1e12, spec.rope_theta);
    spec.rope_fraction = type == "proportional" ? p.real("partial_rotary_factor", 0, 1, 1.0) : 1.0;
    spec.rope_divisor = type == "linear" ? p.real("factor", 1e-3, 1e6, 1.0) : 1.0;
    return;
  }
  // Gemma 3 before transformers 5.
  if (spec.sliding) {
    spec.rope_theta = c.real("rope_local_base_freq", 1, 1e12, 1e4);
  } else {
    spec.rope_theta = c.real("rope_theta", 1, 1e12, 1e6);
    const Reader scaling = c.object("rope_scaling");
    const std::string type = scaling.string("rope_type", scaling.string("type", "default"));
    refuse(type != "default" && type != "linear", scaling.where(), "type " + quote(type, kShown) + " is not supported");
    if (type == "linear") spec.rope_divisor = scaling.real("factor", 1e-3, 1e6, 1.0);
  }
}

// Which layer's K and V each layer reads; architecture 2.7.
void link_kv(ModelConfig& config, const std::string& where) {
  for (int i = 0; i < static_cast<int>(config.layers.size()); ++i) {
    LayerSpec& spec = config.layers[static_cast<size_t>(i)];
    spec.kv_source = i;
    if (i < config.first_shared) continue;
    int source = config.first_shared - 1;
    while (source >= 0 && config.layers[static_cast<size_t>(source)].sliding != spec.sliding) --source;
    if (source < 0) {
      bad(where, "num_kv_shared_layers", str("more than leaves layer ", i, " a layer of its kind to share with"),
          "at least one sliding and one full layer below the first sharing one");
    }
    const LayerSpec& owner = config.layers[static_cast<size_t>(source)];
    if (owner.heads.kv != spec.heads.kv || owner.heads.dim != spec.heads.dim) {
      bad(where, str("layer ", i),
          "a layer that shares KV but has other KV heads or another head width than its source", "equal ones");
    }
    spec.kv_source = source;
  }
}

void finish(ModelConfig& config, const std::string& where) {
  for (size_t i = 0; i < config.layers.size(); ++i) {
    const HeadLayout& h = config.layers[i].heads;
    if (h.query % h.kv != 0) {
      bad(where, str("layer ", i), str(h.query, " query heads over ", h.kv, " KV heads"),
          "a whole number of query heads each");
    }
    if (h.dim % 2 != 0) bad(where, str("layer ", i, " head width"), std::to_string(h.dim), "an even number");
  }
  config.embedding_scale = round_to_bf16(std::sqrt(static_cast<float>(config.hidden)));
  config.per_layer_scale = round_to_bf16(std::sqrt(static_cast<float>(config.per_layer)));
  config.series = config.per_layer > 0 ? "e" : "large";
  link_kv(config, where);
}

ModelConfig from_json(const Checkpoint& checkpoint) {
  const std::string where = checkpoint.path() + "/config.json";
  const Json& top = checkpoint.config();
  const Reader outer(where, top);
  const bool nested = outer.has("text_config");
  const Reader c = nested ? outer.object("text_config") : outer;

  ModelConfig config;
  config.model_type = c.string("model_type", outer.string("model_type", ""));
  const bool gemma4 = config.model_type.starts_with("gemma4");
  refuse(
      !gemma4 && !config.model_type.starts_with("gemma3"), where,
      "model_type " + quote(config.model_type, kShown) + " is not one this engine runs; it runs gemma4* and gemma3*");
  refuse(config.model_type.find("assistant") != std::string::npos, where,
         "this is a drafter, which cannot run alone; load the model it belongs to");
  config.family = gemma4 ? Family::gemma4 : Family::gemma3;
  config.norm_adds_one = !gemma4;
  const Json* note = outer.find("gemmantle");
  if (note != nullptr && note->is_object())
    config.description = Reader(where + " 'gemmantle'", *note).string("description", "");

  const int64_t layers = c.integer("num_hidden_layers", 1, kMaxLayers);
  config.vocab = c.integer("vocab_size", 1, kMaxVocab, 262144);
  config.hidden = c.integer("hidden_size", 1, kMaxWidth);
  config.context = c.integer("max_position_embeddings", 1, kMaxContext, 131072);
  config.window = c.integer("sliding_window", 1, kMaxContext, gemma4 ? 512 : 4096);
  config.norm_eps = static_cast<float>(c.real("rms_norm_eps", 0, 1, 1e-6));
  config.final_softcap = static_cast<float>(c.real("final_logit_softcapping", 0, 1e6, 0));
  config.per_layer = c.integer("hidden_size_per_layer_input", 0, kMaxWidth, 0);
  if (c.boolean("enable_moe_block", false)) {
    config.experts = static_cast<int>(c.integer("num_experts", 1, 65536));
    config.experts_used = static_cast<int>(c.integer("top_k_experts", 1, config.experts));
    config.expert_ffn = c.integer("moe_intermediate_size", 1, kMaxWidth);
  }
  const std::string activation = c.string("hidden_activation", c.string("hidden_act", "gelu_pytorch_tanh"));
  refuse(activation != "gelu_pytorch_tanh", where,
         "hidden_activation " + quote(activation, kShown) + " is not gelu_pytorch_tanh");
  refuse(c.boolean("attention_bias", false), where, "attention_bias is true; released models have no bias");
  refuse(c.has("attn_logit_softcapping"), where, "attn_logit_softcapping is set; released models have none");
  if (const Json* two_way = c.find("use_bidirectional_attention")) {
    refuse(*two_way != "vision" && *two_way != false, where,
           "use_bidirectional_attention is " + quote(two_way->dump(), kShown) + "; this decoder is causal over text");
  }
  if (!gemma4) {
    config.attention_scale = static_cast<float>(1.0 / std::sqrt(c.real("query_pre_attn_scalar", 1e-6, 1e9, 256)));
  }

  const int64_t shared = c.integer("num_kv_shared_layers", 0, layers, 0);
  refuse(shared == layers, where, "every layer shares KV: this is a drafter, which cannot run alone");
  config.first_shared = static_cast<int>(layers - shared);
  const int heads = static_cast<int>(c.integer("num_attention_heads", 1, 65536));
  const int kv = static_cast<int>(c.integer("num_key_value_heads", 1, 65536, heads));
  const int64_t dim = c.integer("head_dim", 2, 65536, 256);
  const int64_t full_dim = gemma4 ? c.integer("global_head_dim", 2, 65536, 512) : dim;
  const bool key_is_value = gemma4 && c.boolean("attention_k_eq_v", false);
  const int full_kv = key_is_value ? static_cast<int>(c.integer("num_global_key_value_heads", 1, 65536, kv)) : kv;
  const int64_t ffn = c.integer("intermediate_size", 1, kMaxWidth);
  const bool double_wide = c.boolean("use_double_wide_mlp", false);
  const std::vector<bool> sliding = read_pattern(c, layers, config.per_layer > 0 && layers % 5 == 0 ? 5 : 6);
  const Reader overrides = c.object("per_layer_config");  // the layout transformers writes today

  for (int i = 0; i < static_cast<int>(layers); ++i) {
    LayerSpec spec;
    spec.sliding = sliding[static_cast<size_t>(i)];
    spec.window = spec.sliding ? config.window : 0;
    spec.value_is_key = key_is_value && !spec.sliding;
    const Reader own = overrides.object(std::to_string(i).c_str());
    spec.heads.query = heads;
    spec.heads.kv = static_cast<int>(own.integer("num_key_value_heads", 1, 65536, spec.sliding ? kv : full_kv));
    spec.heads.dim = static_cast<int>(own.integer("head_dim", 2, 65536, spec.sliding ? dim : full_dim));
    spec.ffn = own.integer("intermediate_size", 1, kMaxWidth, double_wide && i >= config.first_shared ? 2 * ffn : ffn);
    read_rope(c, spec, gemma4);
    config.layers.push_back(spec);
  }
  finish(config, where);
  return config;
}

// Reads metadata keys of one architecture.
class GgufReader {
 public:
  GgufReader(const Checkpoint& checkpoint, std::string prefix)
      : meta_(checkpoint.metadata()), where_(checkpoint.path()), prefix_(std::move(prefix)) {}

  std::string key(const char* name) const { return prefix_ + name; }
  bool has(const char* name) const { return meta_.contains(key(name)); }

  int64_t integer(const char* name, int64_t low, int64_t high) const {
    return checked(where_, key(name), meta_.get_i64(key(name)), low, high);
  }
  int64_t integer(const char* name, int64_t low, int64_t high, int64_t absent) const {
    return has(name) ? integer(name, low, high) : absent;
  }
  double real(const char* name, double low, double high, double absent) const {
    return checked_real(where_, key(name), meta_.get_f64(key(name), absent), low, high);
  }
  // One value for each layer: an array, or one number for all.
  std::vector<int64_t> per_layer(const char* name, int64_t layers, int64_t low, int64_t high) const {
    if (!meta_.is_array(key(name))) return std::vector<int64_t>(static_cast<size_t>(layers), integer(name, low, high));
    std::vector<int64_t> values = meta_.get_i64s(key(name));
    if (static_cast<int64_t>(values.size()) != layers) {
      bad(where_, key(name), str(values.size(), " entries"), str(layers, ", one a layer"));
    }
    for (const int64_t v : values) checked(where_, key(name), v, low, high);
    return values;
  }
  bool is_array(const char* name) const { return meta_.is_array(key(name)); }

 private:
  const GgufMetadata& meta_;
  std::string where_;
  std::string prefix_;
};

ModelConfig from_gguf(const Checkpoint& checkpoint) {
  const std::string& where = checkpoint.path();
  const std::string architecture(checkpoint.metadata().get_string("general.architecture", ""));
  refuse(architecture != "gemma4" && architecture != "gemma3", where,
         "general.architecture " + quote(architecture, kShown) +
             " is not one this engine runs; it runs gemma4 and gemma3");
  const bool gemma4 = architecture == "gemma4";
  const GgufReader c(checkpoint, architecture + ".");

  ModelConfig config;
  config.family = gemma4 ? Family::gemma4 : Family::gemma3;
  config.model_type = architecture;
  const StoredTensor* embedding = checkpoint.find("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() != 2) {
    throw Error(ErrorCode::corrupt_file, where + ": no matrix 'token_embd.weight'; is this a whole model?");
  }
  const int64_t layers = c.integer("block_count", 1, kMaxLayers);
  config.vocab = checked(where, "rows of token_embd.weight", embedding->shape[0], 1, kMaxVocab);
  config.hidden = c.integer("embedding_length", 1, kMaxWidth);
  config.context = c.integer("context_length", 1, kMaxContext, 131072);
  config.window = c.integer("attention.sliding_window", 1, kMaxContext, gemma4 ? 512 : 1024);
  config.norm_eps = static_cast<float>(c.real("attention.layer_norm_rms_epsilon", 0, 1, 1e-6));
  config.final_softcap = static_cast<float>(c.real("final_logit_softcapping", 0, 1e6, 0));
  config.per_layer = c.integer("embedding_length_per_layer_input", 0, kMaxWidth, 0);
  config.experts = static_cast<int>(c.integer("expert_count", 0, 65536, 0));
  if (config.experts > 0) {
    config.experts_used = static_cast<int>(c.integer("expert_used_count", 1, config.experts));
    config.expert_ffn = c.integer("expert_feed_forward_length", 1, kMaxWidth);
  }
  const int64_t shared = c.integer("attention.shared_kv_layers", 0, layers, 0);
  refuse(shared == layers, where, "every layer shares KV: this is a drafter, which cannot run alone");
  config.first_shared = static_cast<int>(layers - shared);

  const auto heads = c.per_layer("attention.head_count", layers, 1, 65536);
  const auto kv = c.per_layer("attention.head_count_kv", layers, 1, 65536);
  const auto ffn = c.per_layer("feed_forward_length", layers, 1, kMaxWidth);
  const int64_t dim = c.integer("attention.key_length", 2, 65536, 256);
  const int64_t dim_swa = c.integer("attention.key_length_swa", 2, 65536, gemma4 ? dim / 2 : dim);
  if (!gemma4) {
    // The 62-layer model alone scales by its width over its heads: architecture 6.4.
    const double scaled =
        layers == 62 ? static_cast<double>(config.hidden) / static_cast<double>(heads[0]) : static_cast<double>(dim);
    config.attention_scale = static_cast<float>(1.0 / std::sqrt(scaled));
  }

  std::vector<int64_t> sliding(static_cast<size_t>(layers));
  if (c.is_array("attention.sliding_window_pattern")) {
    sliding = c.per_layer("attention.sliding_window_pattern", layers, 0, 1);
  } else {
    const int64_t period = c.integer("attention.sliding_window_pattern", 1, kMaxLayers, 6);
    for (size_t i = 0; i < sliding.size(); ++i) sliding[i] = (static_cast<int64_t>(i) + 1) % period != 0;
  }

  // rope_freqs holds 1 for pairs that turn and a huge number for those that do not: architecture 4.2.
  double fraction = gemma4 ? 0.25 : 1.0;
  if (const StoredTensor* freqs = checkpoint.find("rope_freqs.weight"); gemma4 && freqs != nullptr) {
    const int64_t pairs = freqs->elements();
    if (pairs != dim / 2) {
      bad(where, "rope_freqs.weight", str(pairs, " values"), str(dim / 2, ", half the head width of full layers"));
    }
    StoredTensor flat = *freqs;
    flat.shape = {1, pairs};
    std::vector<float> values(static_cast<size_t>(pairs));
    read_rows(flat, 0, 1, values.data());
    size_t turning = 0;
    while (turning < values.size() && values[turning] == 1.0f) ++turning;
    for (size_t i = turning; i < values.size(); ++i) {
      if (!(values[i] >= 1e20f))
        bad(where, str("rope_freqs.weight[", i, "]"), std::to_string(values[i]), "1 for pairs that turn, then 1e30");
    }
    fraction = static_cast<double>(turning) / static_cast<double>(pairs);
  }

  for (int i = 0; i < static_cast<int>(layers); ++i) {
    LayerSpec spec;
    const auto at = static_cast<size_t>(i);
    spec.sliding = sliding[at] != 0;
    spec.window = spec.sliding ? config.window : 0;
    spec.heads.query = static_cast<int>(heads[at]);
    spec.heads.kv = static_cast<int>(kv[at]);
    spec.heads.dim = static_cast<int>(spec.sliding ? dim_swa : dim);
    spec.ffn = ffn[at];
    const std::string value = str("blk.", i, ".attn_v.weight");
    spec.value_is_key = gemma4 && !spec.sliding && i < config.first_shared && checkpoint.find(value) == nullptr &&
                        checkpoint.unreadable(value) == nullptr;
    spec.rope_theta =
        spec.sliding ? c.real("rope.freq_base_swa", 1, 1e12, 1e4) : c.real("rope.freq_base", 1, 1e12, 1e6);
    spec.rope_fraction = spec.sliding ? 1.0 : fraction;
    if (!gemma4 && !spec.sliding) spec.rope_divisor = c.real("rope.scaling.factor", 1e-3, 1e6, 1.0);
    config.layers.push_back(spec);
  }
  finish(config, where);
  return config;
}

}  // namespace

ModelConfig ModelConfig::from(const Checkpoint& checkpoint) {
  return checkpoint.container() == Container::gguf ? from_gguf(checkpoint) : from_json(checkpoint);
}

}  // namespace gemmantle
