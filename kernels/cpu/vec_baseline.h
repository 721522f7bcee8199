// vec_baseline.h: four lanes by the compiler's own vectors, for any machine. Included by vec.h.
#pragma once

namespace gemmantle::cpu {
namespace {

constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Mask __attribute__((vector_size(16)));
typedef uint32_t Bits __attribute__((vector_size(16)));

GEMMANTLE_VEC Vec fill(float value) noexcept { return Vec{value, value, value, value}; }
GEMMANTLE_VEC Vec load(const void* p) noexcept {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
GEMMANTLE_VEC Vec load_first(const void* p, int64_t n) noexcept {
  float values[kLanes] = {};
  memcpy(values, p, static_cast<size_t>(n) * sizeof(float));
  return load(values);
}
GEMMANTLE_VEC void store(float* p, Vec v) noexcept { memcpy(p, &v, sizeof v); }
GEMMANTLE_VEC void store_first(float* p, Vec v, int64_t n) noexcept {
  memcpy(p, &v, static_cast<size_t>(n) * sizeof(float));
}

GEMMANTLE_VEC Vec fma(Vec a, Vec b, Vec c) noexcept { return a * b + c; }
GEMMANTLE_VEC Vec larger(Vec a, Vec b) noexcept { return a > b ? a : b; }
GEMMANTLE_VEC Vec smaller(Vec a, Vec b) noexcept { return a < b ? a : b; }
GEMMANTLE_VEC Vec magnitude(Vec v) noexcept { return (Vec)((Bits)v & 0x7fffffffu); }
GEMMANTLE_VEC Vec with_sign_of(Vec v, Vec sign) noexcept { return (Vec)((Bits)v | ((Bits)sign & 0x80000000u)); }
GEMMANTLE_VEC Mask less(Vec a, Vec b) noexcept { return a < b; }
GEMMANTLE_VEC Vec select(Mask mask, Vec yes, Vec no) noexcept { return mask ? yes : no; }

// v * 2^n, n in the low bits of `bits`.
GEMMANTLE_VEC Vec scale_by_low_bits(Vec v, Vec bits) noexcept { return (Vec)((Bits)v + ((Bits)bits << 23)); }

GEMMANTLE_VEC float sum(Vec v) noexcept { return (v[0] + v[2]) + (v[1] + v[3]); }
GEMMANTLE_VEC float largest(Vec v) noexcept {
  const float a = v[0] > v[2] ? v[0] : v[2];
  const float b = v[1] > v[3] ? v[1] : v[3];
  return a > b ? a : b;
}

GEMMANTLE_VEC Vec load_i8(const int8_t* p) noexcept {
  return __builtin_convertvector((Mask{p[0], p[1], p[2], p[3]}), Vec);
}
GEMMANTLE_VEC Vec load_bf16_first(const uint8_t* p, int64_t n) noexcept {
  float values[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = bf16_to_f32(load_u16(p + 2 * i));
  return load(values);
}
GEMMANTLE_VEC Vec load_bf16(const uint8_t* p) noexcept { return load_bf16_first(p, kLanes); }
GEMMANTLE_VEC float widen_f16(uint16_t half) noexcept { return f16_to_f32(half); }
GEMMANTLE_VEC Vec load_f16_first(const uint8_t* p, int64_t n) noexcept {
  float values[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) values[i] = f16_to_f32(load_u16(p + 2 * i));
  return load(values);
}
GEMMANTLE_VEC Vec load_f16(const uint8_t* p) noexcept { return load_f16_first(p, kLanes); }

// 255 in byte i where bit i is set.
GEMMANTLE_VEC Bytes bytes_of_bits(uint16_t bits) noexcept {
  constexpr Bytes kOwn = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint64_t copies[2] = {(bits & 255u) * 0x0101010101010101u, (bits >> 8) * 0x0101010101010101u};
  Bytes b;
  memcpy(&b, copies, sizeof b);
  return (Bytes)((b & kOwn) == kOwn);
}
// table[codes[i]], codes below 16.
GEMMANTLE_VEC Bytes look_up(Bytes table, Bytes codes) noexcept {
  Bytes b{};
  for (int i = 0; i < 16; ++i) b[i] = table[codes[i]];
  return b;
}

}  // namespace
}  // namespace gemmantle::cpu
