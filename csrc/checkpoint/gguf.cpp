#include "checkpoint/gguf.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <set>

#include "core/bytes.h"
#include "core/error.h"

namespace gemmantle {
namespace {

using formats::FormatId;

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxKeys = 1 << 16;
constexpr uint64_t kMaxTensors = 1 << 20;
constexpr uint64_t kMaxNameBytes = 4096;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kMinKeyBytes = 8 + 4 + 1;         // length, type, smallest value
constexpr uint64_t kMinTensorBytes = 8 + 4 + 4 + 8;  // length, dimensions, type, offset
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;

struct TensorType {
  uint32_t id;
  const char* name;
  std::optional<FormatId> format;
};

constexpr TensorType kTensorTypes[] = {
    {0, "F32", FormatId::f32},        {1, "F16", FormatId::f16},     {2, "Q4_0", FormatId::q4_0},
    {3, "Q4_1", FormatId::q4_1},      {6, "Q5_0", FormatId::q5_0},   {7, "Q5_1", FormatId::q5_1},
    {8, "Q8_0", FormatId::q8_0},      {9, "Q8_1", std::nullopt},     {10, "Q2_K", std::nullopt},
    {11, "Q3_K", std::nullopt},       {12, "Q4_K", FormatId::q4_k},  {13, "Q5_K", FormatId::q5_k},
    {14, "Q6_K", FormatId::q6_k},     {15, "Q8_K", std::nullopt},    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt},     {18, "IQ3_XXS", std::nullopt}, {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", FormatId::iq4_nl}, {21, "IQ3_S", std::nullopt},   {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt},     {24, "I8", std::nullopt},      {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},        {27, "I64", std::nullopt},     {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},      {30, "BF16", FormatId::bf16},  {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},      {39, "MXFP4", std::nullopt},
};

constexpr const char* kReadTypes = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K and IQ4_NL are read";

// Bytes of a fixed-size value; 0 for strings and arrays.
uint64_t value_bytes(GgufType type) noexcept {
  switch (type) {
    case GgufType::u8:
    case GgufType::i8:
    case GgufType::boolean: return 1;
    case GgufType::u16:
    case GgufType::i16: return 2;
    case GgufType::u32:
    case GgufType::i32:
    case GgufType::f32: return 4;
    case GgufType::u64:
    case GgufType::i64:
    case GgufType::f64: return 8;
    case GgufType::string:
    case GgufType::array: return 0;
  }
  return 0;
}

struct Integer {
  bool negative;
  uint64_t magnitude;
};

std::optional<Integer> integer_at(GgufType type, const std::byte* at) {
  const auto from_signed = [](int64_t v) {
    return Integer{v < 0, v < 0 ? uint64_t{0} - static_cast<uint64_t>(v) : static_cast<uint64_t>(v)};
  };
  switch (type) {
    case GgufType::u8: return Integer{false, load<uint8_t>(at)};
    case GgufType::u16: return Integer{false, load<uint16_t>(at)};
    case GgufType::u32: return Integer{false, load<uint32_t>(at)};
    case GgufType::u64: return Integer{false, load<uint64_t>(at)};
    case GgufType::i8: return from_signed(load<int8_t>(at));
    case GgufType::i16: return from_signed(load<int16_t>(at));
    case GgufType::i32: return from_signed(load<int32_t>(at));
    case GgufType::i64: return from_signed(load<int64_t>(at));
    default: return std::nullopt;
  }
}

std::optional<double> number_at(GgufType type, const std::byte* at) {
  if (type == GgufType::f32) return load<float>(at);
  if (type == GgufType::f64) return load<double>(at);
  if (const auto integer = integer_at(type, at)) {
    const auto magnitude = static_cast<double>(integer->magnitude);
    return integer->negative ? -magnitude : magnitude;
  }
  return std::nullopt;
}

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& path)
      : bytes_(bytes), path_(path), reader_(bytes, path_), file_{GgufMetadata(path), {}} {}

  GgufFile parse() {
    const auto [keys, tensors] = read_counts();
    for (uint64_t i = 0; i < keys; ++i) read_key();
    check_not_split();
    alignment_ = file_.metadata.get_u64("general.alignment", kDefaultAlignment);
    if (!std::has_single_bit(alignment_) || alignment_ > kMaxAlignment) {
      refuse("has general.alignment ", alignment_, "; a power of two up to ", kMaxAlignment, " is needed");
    }
    std::vector<Declared> declared;
    for (uint64_t i = 0; i < tensors; ++i) declared.push_back(read_tensor());
    place(std::move(declared));
    return std::move(file_);
  }

 private:
  struct Declared {
    StoredTensor tensor;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    bool readable = true;
  };

  template <class... Parts>
  [[noreturn]] void refuse(const Parts&... parts) const {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path_), " ", parts...));
  }
  template <class... Parts>
  [[noreturn]] void refuse_part(const Parts&... parts) const {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path_), ": ", parts...));
  }
  template <class... Parts>
  [[noreturn]] void unsupported(const Parts&... parts) const {
    throw Error(ErrorCode::unsupported, str("file ", quote(path_), " ", parts...));
  }

  std::pair<uint64_t, uint64_t> read_counts() {
    const auto magic = reader_.read<uint32_t>("its magic");
    if (magic != kMagic) refuse("does not begin with 'GGUF'; is it a GGUF file?");
    const auto version = reader_.read<uint32_t>("its version");
    if (version != 0 && (version & 0xffffu) == 0) {
      unsupported("is a big-endian GGUF file; a little-endian one is needed, convert it first");
    }
    if (version != 2 && version != 3) unsupported("is GGUF version ", version, "; versions 2 and 3 are read");
    const auto tensors = reader_.read<uint64_t>("its tensor count");
    const auto keys = reader_.read<uint64_t>("its metadata count");
    if (keys > kMaxKeys || keys > reader_.remaining() / kMinKeyBytes) {
      refuse("claims ", keys, " metadata keys; its ", bytes_.size(), " bytes can hold at most ",
             std::min(kMaxKeys, reader_.remaining() / kMinKeyBytes));
    }
    if (tensors > kMaxTensors || tensors > reader_.remaining() / kMinTensorBytes) {
      refuse("claims ", tensors, " tensors; its ", bytes_.size(), " bytes can hold at most ",
             std::min(kMaxTensors, reader_.remaining() / kMinTensorBytes));
    }
    return {keys, tensors};
  }

  std::string_view read_name(const char* what) {
    const auto length = reader_.read<uint64_t>(what);
    if (length > kMaxNameBytes) {
      refuse("has ", what, " of ", length, " bytes at byte ", reader_.position(), "; at most ", kMaxNameBytes,
             " are read");
    }
    const std::string_view text = reader_.text(length, what);
    if (!is_utf8(text)) refuse("has ", what, " ", quote(text), " that is not UTF-8");
    return text;
  }

  GgufType read_type(std::string_view key) {
    const auto type = reader_.read<uint32_t>("the type of a metadata value");
    if (type > static_cast<uint32_t>(GgufType::f64)) {
      refuse("gives metadata key ", quote(key), " the type ", type, "; types 0 to 12 are known");
    }
    return static_cast<GgufType>(type);
  }

  void read_key() {
    GgufMetadata::Entry entry;
    entry.key = read_name("a metadata key");
    entry.type = read_type(entry.key);
    if (entry.type == GgufType::string) {
      entry.bytes = reader_.take(reader_.read<uint64_t>("a metadata string"), "a metadata string");
    } else if (entry.type == GgufType::array) {
      read_array(entry);
    } else {
      entry.bytes = reader_.take(value_bytes(entry.type), "a metadata value");
      if (entry.type == GgufType::boolean) check_boolean(entry);
    }
    if (!file_.metadata.add(entry)) refuse("has metadata key ", quote(entry.key), " twice");
  }

  void read_array(GgufMetadata::Entry& entry) {
    entry.element = read_type(entry.key);
    if (entry.element == GgufType::array) {
      unsupported("has an array of arrays under metadata key ", quote(entry.key), "; arrays of plain values are read");
    }
    entry.count = reader_.read<uint64_t>("the length of a metadata array");
    const bool strings = entry.element == GgufType::string;
    const uint64_t each = strings ? 8 : value_bytes(entry.element);
    if (entry.count > reader_.remaining() / each) {
      refuse("claims ", entry.count, " values in metadata array ", quote(entry.key), "; the rest of the file can hold ",
             reader_.remaining() / each);
    }
    if (!strings) {
      entry.bytes = reader_.take(entry.count * each, "a metadata array");
      if (entry.element == GgufType::boolean) check_boolean(entry);
      return;
    }
    const size_t begin = reader_.position();
    for (uint64_t i = 0; i < entry.count; ++i) {
      reader_.take(reader_.read<uint64_t>("a metadata array of strings"), "a metadata array of strings");
    }
    entry.bytes = bytes_.subspan(begin, reader_.position() - begin);
  }

  void check_boolean(const GgufMetadata::Entry& entry) const {
    for (const std::byte value : entry.bytes) {
      if (value > std::byte{1}) {
        refuse("has ", static_cast<int>(value), " as a boolean under metadata key ", quote(entry.key),
               "; 0 or 1 is needed");
      }
    }
  }

  void check_not_split() const {
    const uint64_t parts = file_.metadata.get_u64("split.count", 0);
    if (parts > 1) {
      unsupported("is part ", file_.metadata.get_u64("split.no", 0) + 1, " of ", parts,
                  "; one whole file is needed, merge the parts first (gguf-split --merge)");
    }
  }

  Declared read_tensor() {
    Declared declared;
    StoredTensor& tensor = declared.tensor;
    tensor.name = read_name("a tensor name");
    const auto refuse_tensor = [&](const auto&... parts) { refuse_part("tensor ", quote(tensor.name), " ", parts...); };
    if (!names_.insert(tensor.name).second) refuse_tensor("is there twice; every name must be there once");

    const auto dimensions = reader_.read<uint32_t>("the dimensions of a tensor");
    if (dimensions > kMaxDimensions)
      refuse_tensor("has ", dimensions, " dimensions; at most ", kMaxDimensions, " are read");
    tensor.shape.resize(dimensions);
    for (uint32_t i = 0; i < dimensions; ++i) {
      const auto size = reader_.read<uint64_t>("the dimensions of a tensor");
      if (size > INT64_MAX) refuse_tensor("has a dimension of ", size, ", more than a file can hold");
      tensor.shape[dimensions - 1 - i] = static_cast<int64_t>(size);  // the file lists the innermost first
    }
    const auto type = reader_.read<uint32_t>("the type of a tensor");
    declared.offset = reader_.read<uint64_t>("the offset of a tensor");
    if (declared.offset % alignment_ != 0) {
      refuse_tensor("begins at data byte ", declared.offset, "; a multiple of the alignment ", alignment_,
                    " is needed");
    }
    const int64_t elements = checked_elements(tensor.shape);
    if (elements < 0) refuse_tensor("has shape ", shape_text(tensor.shape), ", more elements than a file can hold");

    const auto* found = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                     [&](const TensorType& known) { return known.id == type; });
    if (found == std::end(kTensorTypes) || !found->format) {
      declared.readable = false;
      const std::string shown =
          found == std::end(kTensorTypes) ? str("number ", type, ", which is not known") : found->name;
      file_.directory.unreadable.emplace(tensor.name, str("its type is ", shown, "; ", kReadTypes));
      return declared;
    }
    tensor.format = *found->format;
    const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
    const FormatSize size = format_size(tensor.format);
    if (cols % size.group != 0) {
      refuse_tensor("has rows of ", cols, " values; ", found->name, " needs a multiple of ", size.group);
    }
    if (__builtin_mul_overflow(static_cast<uint64_t>(elements / size.group), static_cast<uint64_t>(size.block_bytes),
                               &declared.bytes)) {
      refuse_tensor("has shape ", shape_text(tensor.shape), ", more bytes than a file can hold");
    }
    return declared;
  }

  // Data begins at the next multiple of the alignment behind the directory.
  void place(std::vector<Declared> declared) {
    const uint64_t end = reader_.position();
    const uint64_t begin = std::min<uint64_t>((end + alignment_ - 1) / alignment_ * alignment_, bytes_.size());
    const auto data = bytes_.subspan(begin);
    std::sort(declared.begin(), declared.end(), [](const Declared& a, const Declared& b) {
      return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
    });
    uint64_t at = 0;
    const std::string* previous = nullptr;
    for (Declared& next : declared) {
      if (next.offset > data.size() || next.bytes > data.size() - next.offset) {
        refuse_part("tensor ", quote(next.tensor.name), " needs ", next.bytes, " bytes at data byte ", next.offset,
                    "; the file holds ", data.size(), " bytes of data. Is it cut short? Fetch it again");
      }
      if (next.offset < at) {
        refuse_part("tensors ", quote(*previous), " and ", quote(next.tensor.name), " overlap: one ends at data byte ",
                    at, ", the other begins at ", next.offset, "; no two tensors may share bytes");
      }
      at = next.offset + next.bytes;
      previous = &next.tensor.name;
      next.tensor.bytes = data.subspan(next.offset, next.bytes);
    }
    for (Declared& next : declared) {
      if (next.readable) file_.directory.tensors.push_back(std::move(next.tensor));
    }
  }

  const std::span<const std::byte> bytes_;
  const std::string path_;
  ByteReader reader_;
  GgufFile file_;
  uint64_t alignment_ = kDefaultAlignment;
  std::set<std::string, std::less<>> names_;
};

}  // namespace

const char* name(GgufType type) noexcept {
  constexpr const char* kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                    "bool", "string", "array", "u64", "i64", "f64"};
  return static_cast<size_t>(type) < std::size(kNames) ? kNames[static_cast<size_t>(type)] : "unknown";
}

std::string_view GgufStrings::Iterator::operator*() const {
  return {reinterpret_cast<const char*>(at_ + 8), load<uint64_t>(at_)};
}

GgufStrings::Iterator& GgufStrings::Iterator::operator++() {
  at_ += 8 + load<uint64_t>(at_);
  return *this;
}

GgufStrings::Iterator GgufStrings::Iterator::operator++(int) {
  const Iterator before = *this;
  ++*this;
  return before;
}

bool GgufMetadata::add(const Entry& entry) {
  if (!index_.emplace(entry.key, entries_.size()).second) return false;
  entries_.push_back(entry);
  return true;
}

const GgufMetadata::Entry* GgufMetadata::find(std::string_view key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : &entries_[found->second];
}

bool GgufMetadata::is_array(std::string_view key) const {
  const Entry* entry = find(key);
  return entry != nullptr && entry->type == GgufType::array;
}

const GgufMetadata::Entry& GgufMetadata::require(std::string_view key, const char* wanted) const {
  const Entry* entry = find(key);
  if (entry == nullptr) {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path_), " has no metadata key ", quote(key), "; ", wanted,
                                             " is needed. Was it converted by an old tool?"));
  }
  return *entry;
}

void GgufMetadata::wrong_type(const Entry& entry, const char* wanted) const {
  const bool is_array = entry.type == GgufType::array;
  throw Error(ErrorCode::corrupt_file,
              str("file ", quote(path_), " has metadata key ", quote(entry.key), " of type ", name(entry.type),
                  is_array ? str(" of ", name(entry.element)) : std::string(), "; ", wanted, " is needed"));
}

uint64_t GgufMetadata::get_u64(std::string_view key) const {
  constexpr const char* kWanted = "a whole number from 0";
  const Entry& entry = require(key, kWanted);
  const auto value = integer_at(entry.type, entry.bytes.data());
  if (!value) wrong_type(entry, kWanted);
  if (value->negative) {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path_), " has -", value->magnitude, " under metadata key ",
                                             quote(key), "; ", kWanted, " is needed"));
  }
  return value->magnitude;
}

int64_t GgufMetadata::get_i64(std::string_view key) const {
  constexpr const char* kWanted = "a whole number below 2^63";
  const Entry& entry = require(key, kWanted);
  const auto value = integer_at(entry.type, entry.bytes.data());
  if (!value) wrong_type(entry, kWanted);
  if (!value->negative && value->magnitude > INT64_MAX) {
    throw Error(ErrorCode::corrupt_file, str("file ", quote(path_), " has ", value->magnitude, " under metadata key ",
                                             quote(key), "; ", kWanted, " is needed"));
  }
  return static_cast<int64_t>(value->negative ? uint64_t{0} - value->magnitude : value->magnitude);
}

double GgufMetadata::get_f64(std::string_view key) const {
  const Entry& entry = require(key, "a number");
  const auto value = number_at(entry.type, entry.bytes.data());
  if (!value) wrong_type(entry, "a number");
  return *value;
}

bool GgufMetadata::get_bool(std::string_view key) const {
  const Entry& entry = require(key, "true or false");
  if (entry.type != GgufType::boolean) wrong_type(entry, "true or false");
  return entry.bytes[0] != std::byte{0};
}

std::string_view GgufMetadata::get_string(std::string_view key) const {
  const Entry& entry = require(key, "a string");
  if (entry.type != GgufType::string) wrong_type(entry, "a string");
  return {reinterpret_cast<const char*>(entry.bytes.data()), entry.bytes.size()};
}

GgufStrings GgufMetadata::get_strings(std::string_view key) const {
  constexpr const char* kWanted = "an array of strings";
  const Entry& entry = require(key, kWanted);
  if (entry.type != GgufType::array || entry.element != GgufType::string) wrong_type(entry, kWanted);
  return {entry.count, entry.bytes};
}

std::vector<int64_t> GgufMetadata::get_i64s(std::string_view key) const {
  constexpr const char* kWanted = "an array of whole numbers";
  const Entry& entry = require(key, kWanted);
  const uint64_t each = value_bytes(entry.element);
  if (entry.type != GgufType::array || each == 0) wrong_type(entry, kWanted);
  // Booleans are bytes of 0 and 1.
  const GgufType type = entry.element == GgufType::boolean ? GgufType::u8 : entry.element;
  std::vector<int64_t> values;
  values.reserve(entry.count);
  for (uint64_t i = 0; i < entry.count; ++i) {
    const auto value = integer_at(type, entry.bytes.data() + i * each);
    if (!value || (!value->negative && value->magnitude > INT64_MAX)) wrong_type(entry, kWanted);
    values.push_back(static_cast<int64_t>(value->negative ? uint64_t{0} - value->magnitude : value->magnitude));
  }
  return values;
}

std::vector<float> GgufMetadata::get_f32s(std::string_view key) const {
  constexpr const char* kWanted = "an array of numbers";
  const Entry& entry = require(key, kWanted);
  const uint64_t each = value_bytes(entry.element);
  if (entry.type != GgufType::array || each == 0 || entry.element == GgufType::boolean) wrong_type(entry, kWanted);
  std::vector<float> values;
  values.reserve(entry.count);
  for (uint64_t i = 0; i < entry.count; ++i) {
    const double value = number_at(entry.element, entry.bytes.data() + i * each).value_or(0);
    const bool fits = !(std::abs(value) > std::numeric_limits<float>::max());
    values.push_back(fits ? static_cast<float>(value) : std::copysign(std::numeric_limits<float>::infinity(), value));
  }
  return values;
}

bool looks_like_gguf(std::span<const std::byte> bytes) noexcept {
  return bytes.size() >= sizeof kMagic && load<uint32_t>(bytes.data()) == kMagic;
}

GgufFile parse_gguf(std::span<const std::byte> bytes, const std::string& path) { return Parser(bytes, path).parse(); }

}  // namespace gemmantle
