// Products by oneDNN's micro-kernels (brgemm), and matrices in the order that they take.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "numbers.h"

namespace {

// Matrices as the right side of a product, [inner, columns]: bfloat16 has the elements of two rows
// that follow each other side by side, as the instructions take them.
template <typename T>
constexpr bool kPaired = std::is_same_v<T, at::BFloat16>;

// C = A B, or C += A B; A and C row-major, B packed, `columns` of its rows apart.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
              float* c, int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, kPaired<T>);
}

// Whether bfloat16 is multiplied here: by oneDNN's micro-kernels alone, which not every build has.
bool multiplies_bfloat16() {
  try {
    std::vector<at::BFloat16> ones(4, at::BFloat16(1.0f));
    std::vector<float> product(4);
    multiply<at::BFloat16>(2, 2, 2, ones.data(), 2, ones.data(), 2, product.data(), 2, false);
    at::native::cpublas::brgemm_release(true);
    return product[0] == 2.0f;
  } catch (const c10::Error&) {
    return false;
  }
}

// Packs rows [0, rows) of a matrix, then zeros up to `padded` rows.
template <typename T>
void pack(const T* from, int64_t stride, int64_t rows, int64_t padded, int64_t columns, T* to) {
  std::fill_n(to + rows / 2 * 2 * columns, (padded - rows / 2 * 2) * columns, T(0.0f));
  if constexpr (kPaired<T>) {
    for (int64_t i = 0; i + 1 < rows; i += 2) {
      const auto* __restrict one = reinterpret_cast<const uint16_t*>(from + i * stride);
      const auto* __restrict other = reinterpret_cast<const uint16_t*>(from + (i + 1) * stride);
      auto* __restrict out = reinterpret_cast<uint32_t*>(to + i * columns);
      for (int64_t j = 0; j < columns; ++j)
        out[j] = one[j] | static_cast<uint32_t>(other[j]) << 16;
    }
    if (rows % 2)
      for (int64_t j = 0; j < columns; ++j)
        to[(rows - 1) * columns + 2 * j] = from[(rows - 1) * stride + j];
  } else {
    for (int64_t i = 0; i < rows; ++i) std::copy_n(from + i * stride, columns, to + i * columns);
  }
}

// A register of numbers of 32 bits.
#if defined(__AVX512F__)
constexpr int64_t kLine = 16;
#elif defined(__AVX2__)
constexpr int64_t kLine = 8;
#else
constexpr int64_t kLine = 4;
#endif
typedef uint32_t Line __attribute__((vector_size(kLine * 4)));

inline Line choose(Line a, Line b, Line places) {  // of the numbers of both
#ifdef __clang__
  Line chosen;
  for (int i = 0; i < kLine; ++i) chosen[i] = places[i] < kLine ? a[places[i]] : b[places[i] - kLine];
  return chosen;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

// Exchanges the upper right with the lower left quarter of every 2 step x 2 step block of a tile.
template <uint32_t step>
inline void cross(Line (&tile)[kLine]) {
  Line upper, lower;
  for (uint32_t j = 0; j < kLine; ++j) {
    upper[j] = j & step ? kLine + j - step : j;
    lower[j] = j & step ? kLine + j : j + step;
  }
  for (uint32_t i = 0; i < kLine; ++i) {
    if (i & step) continue;
    const Line a = tile[i], b = tile[i + step];
    tile[i] = choose(a, b, upper);
    tile[i + step] = choose(a, b, lower);
  }
}

// to[j * to_stride + i] = from[i * stride + j] of numbers of 32 bits, in square tiles: one by one
// the strides of a power of two would put all rows into few sets of the cache. `stride` in bytes.
// Where To is bfloat16 the numbers are float32 and get rounded.
template <typename To>
void transpose(const void* from, int64_t stride, int64_t rows, int64_t columns, To* to,
               int64_t to_stride) {
  const auto at = [&](int64_t i, int64_t j) {
    return static_cast<const char*>(from) + i * stride + j * sizeof(uint32_t);
  };
  const auto store = [](const uint32_t* numbers, int64_t count, To* out) {
    if constexpr (kPaired<To>) round_row(reinterpret_cast<const float*>(numbers), count, out);
    else __builtin_memcpy(out, numbers, count * sizeof(To));
  };
  for (int64_t i = 0; i < rows; i += kLine)
    for (int64_t j = 0; j < columns; j += kLine) {
      const int64_t height = std::min(kLine, rows - i), width = std::min(kLine, columns - j);
      Line tile[kLine] = {};
      if (width == kLine) {  // a size that the compiler knows
        for (int64_t r = 0; r < height; ++r) {
          __builtin_memcpy(&tile[r], at(i + r, j), sizeof(Line));
          __builtin_prefetch(at(i + r + kLine, j));  // rows are too far apart for the processor's own
        }
      } else {
        for (int64_t r = 0; r < height; ++r) __builtin_memcpy(&tile[r], at(i + r, j), width * 4);
      }
      if constexpr (kLine > 8) cross<8>(tile);
      if constexpr (kLine > 4) cross<4>(tile);
      cross<2>(tile);
      cross<1>(tile);
      for (int64_t c = 0; c < width; ++c) {
        uint32_t line[kLine];
        __builtin_memcpy(line, &tile[c], sizeof(line));
        To* out = to + (j + c) * to_stride + i;
        if (height == kLine) store(line, kLine, out);
        else store(line, height, out);
      }
    }
}

// The transpose of a float32 matrix whose rows are contiguous. PyTorch's copy takes half
// as long again.
Tensor transposed(const Tensor& matrix) {
  TORCH_CHECK(matrix.dim() == 2 && matrix.scalar_type() == at::kFloat &&
                  (matrix.stride(1) == 1 || matrix.size(1) == 1),
              "not a float32 matrix with contiguous rows");
  const int64_t rows = matrix.size(0), columns = matrix.size(1);
  Tensor output = at::empty({columns, rows}, matrix.options());
  const float* from = matrix.data_ptr<float>();
  float* to = output.data_ptr<float>();
  // Few columns at a time, so that as few pages are written to.
  constexpr int64_t kColumns = 64;
  at::parallel_for(0, (columns + kColumns - 1) / kColumns, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t j = part * kColumns;
      transpose(from + j, matrix.stride(0) * sizeof(float), rows, std::min(kColumns, columns - j),
                to + j * rows, rows);
    }
  });
  return output;
}

// Packs the transpose of rows [0, rows) of a matrix, with zeros for rows up to `padded`.
template <typename T>
void pack_transposed(const T* from, int64_t stride, int64_t rows, int64_t padded, int64_t columns,
                     T* to) {
  const int64_t units = columns * sizeof(T) / sizeof(uint32_t);  // what stays together
  auto* out = reinterpret_cast<uint32_t*>(to);
  transpose(from, stride * sizeof(T), rows, units, out, padded);
  for (int64_t j = 0; j < units; ++j)
    std::fill_n(out + j * padded + rows, padded - rows, uint32_t(0));
}

// The transpose of rows [0, rows) of a matrix as the left side of a product; bfloat16 gets a column
// of zeros where `rows` is odd. `room` holds as many numbers as the result.
template <typename T>
void transpose_left(const T* from, int64_t stride, int64_t rows, int64_t columns, T* to, T* room) {
  if constexpr (kPaired<T>) {
    const int64_t pairs = (rows + 1) / 2;
    pack(from, stride, rows, 2 * pairs, columns, room);
    transpose(room, columns * sizeof(uint32_t), pairs, columns, reinterpret_cast<uint32_t*>(to), pairs);
  } else {
    transpose(from, stride * sizeof(T), rows, columns, to, rows);
  }
}

}  // namespace
