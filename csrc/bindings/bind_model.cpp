// bind_model.cpp: Checkpoint (headers of files) and Model (placed weights).
#include <cstring>
#include <fstream>
#include <iterator>

#include "backend/op_profile.h"
#include "bindings/convert.h"
#include "bindings/models.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/gguf.h"

namespace gemmantle::bindings {
namespace {

py::dtype element_dtype(GgufType type) {
  switch (type) {
    case GgufType::u8: return py::dtype::of<uint8_t>();
    case GgufType::i8: return py::dtype::of<int8_t>();
    case GgufType::u16: return py::dtype::of<uint16_t>();
    case GgufType::i16: return py::dtype::of<int16_t>();
    case GgufType::u32: return py::dtype::of<uint32_t>();
    case GgufType::i32: return py::dtype::of<int32_t>();
    case GgufType::u64: return py::dtype::of<uint64_t>();
    case GgufType::i64: return py::dtype::of<int64_t>();
    case GgufType::f32: return py::dtype::of<float>();
    case GgufType::f64: return py::dtype::of<double>();
    case GgufType::boolean: return py::dtype::of<bool>();
    case GgufType::string:
    case GgufType::array: break;
  }
  throw Error(ErrorCode::internal, str("no numbers in a GGUF array of ", name(type)));
}

py::object metadata_value(const GgufMetadata& metadata, std::string_view key) {
  const GgufMetadata::Entry* entry = metadata.find(key);
  if (entry == nullptr) return py::none();
  switch (entry->type) {
    case GgufType::u8:
    case GgufType::u16:
    case GgufType::u32:
    case GgufType::u64: return py::int_(metadata.get_u64(key));
    case GgufType::i8:
    case GgufType::i16:
    case GgufType::i32:
    case GgufType::i64: return py::int_(metadata.get_i64(key));
    case GgufType::f32:
    case GgufType::f64: return py::float_(metadata.get_f64(key));
    case GgufType::boolean: return py::bool_(metadata.get_bool(key));
    case GgufType::string: return to_bytes(metadata.get_string(key));
    case GgufType::array: break;
  }
  if (entry->element == GgufType::string) {
    py::list out;
    for (const std::string_view text : metadata.get_strings(key)) out.append(to_bytes(text));
    return out;
  }
  py::array out(element_dtype(entry->element), static_cast<py::ssize_t>(entry->count));
  GEMMANTLE_CHECK(static_cast<size_t>(out.nbytes()) <= entry->bytes.size(), "array ", std::string(key));
  // Booleans are bytes of 0 or 1 in the file; another value would be no bool for numpy.
  auto* values = static_cast<unsigned char*>(out.mutable_data());
  std::memcpy(values, entry->bytes.data(), static_cast<size_t>(out.nbytes()));
  if (entry->element == GgufType::boolean) {
    for (py::ssize_t i = 0; i < out.nbytes(); ++i) values[i] = values[i] != 0;
  }
  return out;
}

std::string config_text(const Checkpoint& checkpoint) {
  if (checkpoint.container() == Container::gguf) return {};
  std::ifstream file(checkpoint.path() + "/config.json", std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

py::list tensor_list(const Checkpoint& checkpoint) {
  py::list out;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    py::tuple shape(tensor.shape.size());
    for (size_t i = 0; i < tensor.shape.size(); ++i) shape[i] = tensor.shape[i];
    out.append(py::make_tuple(to_str(tensor.name), format_name(tensor.format), shape, tensor.bytes.size()));
  }
  return out;
}

Mode to_mode(const std::string& mode) {
  if (mode == "exact") return Mode::exact;
  if (mode == "fast") return Mode::fast;
  throw Error(ErrorCode::invalid_argument, str("mode is '", mode, "'; it must be 'exact' or 'fast'"), "mode");
}

// "auto" is no type: the mode decides.
std::optional<DType> to_kv(const std::string& kv) {
  if (kv == "auto") return std::nullopt;
  if (kv == "f32") return DType::f32;
  if (kv == "bf16") return DType::bf16;
  if (kv == "q8") return DType::i8;
  throw Error(ErrorCode::invalid_argument, str("kv is '", kv, "'; it must be 'auto', 'f32', 'bf16' or 'q8'"), "kv");
}

const char* kv_name(DType kv) { return kv == DType::i8 ? "q8" : kv == DType::bf16 ? "bf16" : "f32"; }

py::dict config_dict(const ModelConfig& config) {
  py::dict out;
  out["family"] = config.family == Family::gemma3 ? "gemma3" : "gemma4";
  out["model_type"] = to_str(config.model_type);
  out["description"] = to_str(config.description);
  out["series"] = to_str(config.series);
  out["vocab_size"] = config.vocab;
  out["hidden_size"] = config.hidden;
  out["layers"] = config.layers.size();
  out["context_length"] = config.context;
  out["sliding_window"] = config.window;
  out["final_softcap"] = config.final_softcap;
  out["per_layer_size"] = config.per_layer;
  out["shared_kv_layers"] = static_cast<int64_t>(config.layers.size()) - config.first_shared;
  out["experts"] = config.experts;
  out["experts_used"] = config.experts_used;
  return out;
}

py::list profile_list(OpProfile* profile) {
  if (profile == nullptr) {
    throw Error(ErrorCode::invalid_argument, "this model is not profiled: load it with profile=True", "profile");
  }
  py::list out;
  for (const OpProfile::Entry& entry : profile->take()) {
    py::dict op;
    op["op"] = entry.op;
    op["format"] = entry.format.empty() ? py::object(py::none()) : py::str(entry.format);
    op["rows"] = entry.rows;
    op["cols"] = entry.cols;
    op["calls"] = entry.use.calls;
    op["seconds"] = entry.use.seconds;
    op["bytes"] = entry.use.bytes;
    op["operations"] = entry.use.operations;
    out.append(op);
  }
  return out;
}

py::dict info_dict(const ModelInfo& info) {
  py::dict out;
  out["device"] = info.backend.device;
  out["isa"] = info.backend.isa;
  out["threads"] = info.backend.threads;
  out["mode"] = info.mode == Mode::exact ? "exact" : "fast";
  out["kv_type"] = kv_name(info.kv);
  out["weight_bytes"] = info.weight_bytes;
  out["parameters"] = info.parameters;
  out["formats"] = info.formats;
  out["layers_per_device"] = info.layers_per_device;
  return out;
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<PyCheckpoint>(m, "Checkpoint",
                           "The headers of a folder of safetensors or of a GGUF file. Maps files, reads no weights.")
      .def(py::init([](const std::string& path) {
             const py::gil_scoped_release unlocked;
             return PyCheckpoint{Checkpoint::open(path)};
           }),
           py::arg("path"), "Raises ModelNotFound, CorruptFile, UnsupportedModel, naming the file and what is wrong.")
      .def_property_readonly(
          "container",
          [](const PyCheckpoint& self) { return self.files->container() == Container::gguf ? "gguf" : "safetensors"; },
          "\"safetensors\" or \"gguf\".")
      .def_property_readonly(
          "files",
          [](const PyCheckpoint& self) {
            py::list out;
            for (const std::string& file : self.files->files()) out.append(to_str(file));
            return out;
          },
          "Paths of the files that hold tensors.")
      .def(
          "get",
          [](const PyCheckpoint& self, const std::string& key) { return metadata_value(self.files->metadata(), key); },
          py::arg("key"),
          "A metadata value of a GGUF file: int, float, bool, bytes for a string, list of bytes, or a numpy array.\n\n"
          "None where the key is absent. Raises CorruptFile for a value that cannot be.")
      .def(
          "keys",
          [](const PyCheckpoint& self) {
            py::list out;
            for (const GgufMetadata::Entry& entry : self.files->metadata().entries()) out.append(to_str(entry.key));
            return out;
          },
          "Metadata keys of a GGUF file, in file order; empty for safetensors.")
      .def(
          "config_json", [](const PyCheckpoint& self) { return to_str(config_text(*self.files)); },
          "Text of config.json; empty for GGUF.")
      .def(
          "tensors", [](const PyCheckpoint& self) { return tensor_list(*self.files); },
          "(name, format, shape outermost first, bytes) of every tensor, in file order.");

  py::class_<PyModel>(m, "Model", "A configuration, its placed weights and a device.")
      .def_static(
          "load",
          [](const std::string& path, const std::string& device, int threads, const std::string& mode,
             const std::string& kv, bool deterministic, bool profile) {
            if (threads < 0) {
              throw Error(ErrorCode::invalid_argument,
                          str("threads is ", threads, "; it must be 0 (all cores) or a positive number"), "threads");
            }
            const BackendOptions options{device, threads, to_mode(mode), to_kv(kv), deterministic};
            const auto ops = profile ? std::make_shared<OpProfile>() : nullptr;
            const py::gil_scoped_release unlocked;
            return PyModel(Model::load(path, options, ops), ops);
          },
          py::arg("path"), py::kw_only(), py::arg("device") = "auto", py::arg("threads") = 0, py::arg("mode") = "exact",
          py::arg("kv") = "auto", py::arg("deterministic") = false, py::arg("profile") = false,
          "Loads a folder or a GGUF file; `deterministic` makes a device give a row the same bits alone and in a "
          "batch\n"
          "(the CPU always does), `profile` times every op of the CPU. The interpreter lock is released.\n\n"
          "Raises ModelNotFound, CorruptFile, UnsupportedModel, OutOfMemory, RequestError (device, threads, mode, kv, "
          "profile).")
      .def(
          "config", [](const PyModel& self) { return config_dict(self.facts().config()); },
          "Facts of the model: family, model_type, vocab_size, hidden_size, layers, context_length, ...")
      .def(
          "info", [](const PyModel& self) { return info_dict(self.facts().info()); },
          "How it is run: device, isa, threads, mode, kv_type, weight_bytes, parameters, formats, "
          "layers_per_device.")
      .def(
          "take_profile", [](const PyModel& self) { return profile_list(self.profile()); },
          "What ops took since the last call, a list of {op, format, rows, cols, calls, seconds, bytes, operations}:\n"
          "format, rows and cols of the weight (query heads and their width for attend), bytes of weights and KV "
          "read,\n"
          "multiplications and additions of products. Raises RequestError without profile=True.");
}

}  // namespace gemmantle::bindings
