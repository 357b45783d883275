// What the kernels compute a number at a time: lots of dropout, powers, the normal distribution,
// roundings to bfloat16.
//
// The hash: rows get 64 bits of SplitMix64 each, of which 32 are the row's key; column j of the row
// is murmur3's finaliser of key + j * 0x9E3779B9, and a unit is dropped where the result, an
// unsigned number of 32 bits, lies below p * 2^32.
#pragma once

#include <ATen/ATen.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace {

using at::Tensor;

constexpr float kLowest = -std::numeric_limits<float>::infinity();

inline uint64_t splitmix(uint64_t value) {
  value += 0x9E3779B97F4A7C15ull;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9ull;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBull;
  return value ^ (value >> 31);
}

inline uint32_t row_key(int64_t seed, int64_t row) {
  return static_cast<uint32_t>(splitmix(splitmix(static_cast<uint64_t>(seed)) +
                                        static_cast<uint64_t>(row)) >> 32);
}

inline uint32_t column_key(int64_t column) { return static_cast<uint32_t>(column) * 0x9E3779B9u; }

inline uint32_t lot(uint32_t key, uint32_t column) {
  uint32_t h = key + column * 0x9E3779B9u;
  h ^= h >> 16;
  h *= 0x85EBCA6Bu;
  h ^= h >> 13;
  h *= 0xC2B2AE35u;
  return h ^ (h >> 16);
}

constexpr float kLog2E = 1.44269504f;

// 2 to the y for y <= 0 or small; relative error below 3e-7 (a minimax polynomial of degree 5 for
// the fraction, the whole part added to the exponent).
inline float power_of_two(float y) {
  y = std::max(y, -125.0f);
  const float whole = std::nearbyint(y), r = y - whole;
  float p = 1.3276472e-3f;
  p = p * r + 9.6755410e-3f;
  p = p * r + 5.5507131e-2f;
  p = p * r + 2.4022120e-1f;
  p = p * r + 6.9314694e-1f;
  p = p * r + 1.0f;
  int32_t bits;
  __builtin_memcpy(&bits, &p, sizeof(bits));
  bits += static_cast<int32_t>(whole) << 23;
  __builtin_memcpy(&p, &bits, sizeof(p));
  return p;
}

inline float exponential(float x) { return power_of_two(x * kLog2E); }

// Which units are dropped, and what the others are multiplied by.
struct Dropout {
  uint32_t threshold;
  float kept;
  explicit Dropout(double probability)
      : threshold(static_cast<uint32_t>(probability * 4294967296.0)),
        kept(static_cast<float>(4294967296.0 / (4294967296.0 - threshold))) {
    TORCH_CHECK(probability >= 0 && probability < 1, "dropout = ", probability);
  }
};

struct Gaussian {
  float cumulative;  // of the standard normal distribution at x
  float density;     // there
};

// By the error function of Abramowitz and Stegun 7.1.26: absolute error below 1.5e-7.
inline Gaussian gaussian(float x) {
  float e = power_of_two(x * x * (-0.5f * kLog2E));
  float t = 1.0f / (1.0f + 0.23164189f * std::fabs(x));
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  float upper = 0.5f * p * t * e;  // 1 - Phi(|x|)
  return {x < 0 ? upper : 1.0f - upper, 0.39894228f * e};
}

inline uint32_t rounded(float x) {  // to the nearest bfloat16, of finite numbers
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
}

// float32 to bfloat16. The compiler does not know the instruction of it.
inline void round_row(const float* __restrict in, int64_t count, at::BFloat16* __restrict to) {
  auto* out = reinterpret_cast<uint16_t*>(to);
  int64_t j = 0;
#ifdef __AVX512BF16__
  for (; j + 16 <= count; j += 16) {
    const __m256bh halves = _mm512_cvtneps_pbh(_mm512_loadu_ps(in + j));
    __builtin_memcpy(out + j, &halves, sizeof(halves));
  }
#endif
  for (; j < count; ++j) out[j] = static_cast<uint16_t>(rounded(in[j]));
}

// Two rows of float32 to bfloat16, the elements of both side by side.
inline void round_rows(const float* __restrict one, const float* __restrict other, int64_t count,
                       at::BFloat16* __restrict to) {
  auto* out = reinterpret_cast<uint32_t*>(to);
  int64_t j = 0;
#ifdef __AVX512BF16__
  alignas(64) uint16_t places[32];
  for (int i = 0; i < 32; ++i) places[i] = static_cast<uint16_t>(i / 2 + i % 2 * 16);
  const __m512i order = _mm512_load_si512(places);
  for (; j + 16 <= count; j += 16) {
    const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(other + j), _mm512_loadu_ps(one + j));
    __m512i words;
    __builtin_memcpy(&words, &both, sizeof(words));
    _mm512_storeu_si512(out + j, _mm512_permutexvar_epi16(order, words));
  }
#endif
  for (; j < count; ++j) out[j] = rounded(one[j]) | rounded(other[j]) << 16;
}

}  // namespace
