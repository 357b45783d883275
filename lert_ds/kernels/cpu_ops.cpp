// Kernels for a processor core: attention with dropout, dropout-add-LayerNorm, bias-GELU, cross
// entropy.
//
// What PyTorch leaves on the table in a training step of LERT-small at length 512 (fp32, one core):
// with dropout its attention writes and reads four tensors of batch x heads x length x length, 16 MB
// each a layer, and draws its masks one number after the other. Here a block of query rows is
// multiplied, normalised, dropped and multiplied again while it lies in the second-level cache, and
// a mask is a hash of (seed, row, column), which is computed again in the backward pass: nothing of
// the size length x length is ever kept. The products are oneDNN's micro-kernels (brgemm), which
// PyTorch brings along, in float32 or in bfloat16 with float32 sums; the loops between are plain C++
// that the compiler vectorises.
//
// The hash: rows get 64 bits of SplitMix64 each, of which 32 are the row's key; column j of the row
// is murmur3's finaliser of key + j * 0x9E3779B9, and a unit is dropped where the result, an
// unsigned number of 32 bits, lies below p * 2^32.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

namespace {

using at::Tensor;

// Bytes of the two score blocks that a thread works on: half of a small second-level cache.
constexpr int64_t kBlockBytes = 256 * 1024;
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

// What a row of products becomes: its dropped probabilities are the row times `factor`.
struct RowSum {
  float log_sum;  // of the exponentials
  float factor;
};

// Products of one row to dropped exponentials, in place; `scale` is positive.
template <bool dropping>
RowSum softmax_row(float* __restrict row, int count, float scale, uint32_t key, Dropout dropout) {
  float largest = kLowest, sum = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int j = 0; j < count; ++j) largest = row[j] > largest ? row[j] : largest;
  const float slope = scale * kLog2E, top = largest * slope;
  const uint32_t threshold = dropout.threshold;
  for (int j = 0; j < count; ++j) {
    const float power = power_of_two(row[j] * slope - top);
    sum += power;
    row[j] = !dropping || lot(key, j) >= threshold ? power : 0.0f;
  }
  return {largest * scale + std::log(sum), dropout.kept / sum};
}

// Products of one row to dropped probabilities, and the gradients of these to those of the products.
template <bool dropping>
void softmax_backward_row(float* __restrict row, float* __restrict slope, int count, float log_sum,
                          float mean, float scale, uint32_t key, Dropout dropout) {
  const uint32_t threshold = dropout.threshold;
  const float kept = dropout.kept, factor = scale * kLog2E, top = log_sum * kLog2E;
  for (int j = 0; j < count; ++j) {
    const float probability = power_of_two(row[j] * factor - top);
    const float keep = !dropping || lot(key, j) >= threshold ? kept : 0.0f;
    row[j] = probability * keep;
    slope[j] = probability * (keep * slope[j] - mean) * scale;
  }
}

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

// A tensor [batch, heads, length, size] whose last dimension is contiguous.
template <typename T>
struct Heads {
  T* data;
  int64_t batch, head, row;
  explicit Heads(const Tensor& tensor)
      : data(tensor.data_ptr<T>()),
        batch(tensor.stride(0)),
        head(tensor.stride(1)),
        // Of a single row any number may be given; BLAS takes none below the size.
        row(tensor.size(2) == 1 ? tensor.size(3) : tensor.stride(2)) {
    TORCH_CHECK(tensor.dim() == 4 && (tensor.size(3) == 1 || tensor.stride(3) == 1));
    TORCH_CHECK(row >= tensor.size(3), "rows that overlap");
  }
  T* of(int64_t b, int64_t h, int64_t i = 0) const {
    return data + b * batch + h * head + i * row;
  }
};

constexpr int64_t kStep = 32;  // Widths of blocks are multiples of it, so that few kernels are made.

struct Shape {
  int64_t batch, heads, length, size, rows, padded;
  explicit Shape(const Tensor& query)
      : batch(query.size(0)), heads(query.size(1)), length(query.size(2)), size(query.size(3)) {
    rows = std::min<int64_t>(128, std::max<int64_t>(16, kBlockBytes / 8 / length));
    padded = (length + kStep - 1) / kStep * kStep;
  }
};

// Which keys [first, end) each query may see, and in whole steps those of a block of queries.
struct Ranges {
  const int32_t* data;  // [batch, length, 2], or null where all see all
  int64_t length;
  int64_t first(int64_t b, int64_t i) const { return data ? data[(b * length + i) * 2] : 0; }
  int64_t end(int64_t b, int64_t i) const { return data ? data[(b * length + i) * 2 + 1] : length; }
  std::pair<int64_t, int64_t> of_block(int64_t b, int64_t i, int64_t count) const {
    if (!data) return {0, (length + kStep - 1) / kStep * kStep};
    int64_t low = length, high = 0;
    for (int64_t row = i; row < i + count; ++row) {
      low = std::min(low, first(b, row));
      high = std::max(high, end(b, row));
    }
    if (high <= low) return {0, 0};
    return {low / kStep * kStep, (high + kStep - 1) / kStep * kStep};
  }
};

Ranges ranges_of(const std::optional<Tensor>& ranges, const Shape& shape) {
  if (!ranges.has_value()) return {nullptr, shape.length};
  TORCH_CHECK(ranges->is_contiguous() && ranges->dim() == 3 && ranges->size(0) == shape.batch &&
                  ranges->size(1) == shape.length && ranges->size(2) == 2,
              "ranges of another shape");
  return {ranges->data_ptr<int32_t>(), shape.length};
}

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

// The transpose of a float32 matrix whose rows are contiguous. PyTorch's copy takes two to three times
// as long, which was 5 % of a training step.
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

// Rows of a block in float32, and as the left and the right side of products.
template <typename T>
struct Block {
  std::vector<float> numbers;
  std::vector<at::BFloat16> left, right;  // of float32 the numbers themselves are both
  int64_t width = 0;

  explicit Block(int64_t size) : numbers(size) {
    if (kPaired<T>) {
      left.resize(size);
      right.resize(size);
    }
  }
  float* row(int64_t r) { return numbers.data() + r * width; }
  const T* as_left() {
    if constexpr (kPaired<T>) return left.data();
    else return numbers.data();
  }
  const T* as_right() {
    if constexpr (kPaired<T>) return right.data();
    else return numbers.data();
  }
  void round_left(int64_t r) {
    if constexpr (kPaired<T>) round_row(row(r), width, left.data() + r * width);
  }
  // Of rows r and r + 1.
  void round_right(int64_t r) {
    if constexpr (kPaired<T>) round_rows(row(r), row(r + 1), width, right.data() + r * width);
  }
};

// dropout(softmax(q k^T * scale)) v. Returns [batch, length, heads, size] and the log of each row's
// sum of exponentials, [batch, heads, length].
template <typename T>
void attend(const Shape& shape, const Heads<T>& q, const Heads<T>& k, const Heads<T>& v,
            const Heads<T>& out, float* log_sum, const Ranges& visible, Dropout drop, float scale,
            int64_t seed) {
  at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t from, int64_t to) {
    const int64_t size = shape.size, padded = shape.padded;
    Block<T> scores(shape.rows * padded);
    std::vector<T> keys(padded * size), values(padded * size);
    std::vector<float> sums(shape.rows * size), factors(shape.rows);
    const auto softmax = drop.threshold ? softmax_row<true> : softmax_row<false>;
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t b = pair / shape.heads, h = pair % shape.heads;
      pack_transposed(k.of(b, h), k.row, shape.length, padded, size, keys.data());
      pack(v.of(b, h), v.row, shape.length, padded, size, values.data());
      for (int64_t i = 0; i < shape.length; i += shape.rows) {
        const int64_t count = std::min(shape.rows, shape.length - i);
        const auto [low, high] = visible.of_block(b, i, count);
        const int64_t width = scores.width = high - low;
        if (width == 0) {
          for (int64_t r = 0; r < count; ++r) {
            std::fill_n(out.of(b, h, i + r), size, T(0.0f));
            log_sum[pair * shape.length + i + r] = 0.0f;
          }
          continue;
        }
        multiply<T>(count, width, size, q.of(b, h, i), q.row,
                    keys.data() + low * (kPaired<T> ? 2 : 1), padded, scores.row(0), width, false);
        for (int64_t r = 0; r < count; ++r) {
          float* __restrict row = scores.row(r);
          const int64_t first = visible.first(b, i + r), end = visible.end(b, i + r);
          const int64_t place = pair * shape.length + i + r;
          const int64_t begin = first < end ? first - low : 0, stop = first < end ? end - low : 0;
          std::fill_n(row, begin, 0.0f);
          std::fill_n(row + stop, width - stop, 0.0f);
          RowSum sum{0.0f, 0.0f};
          if (begin < stop)
            sum = softmax(row + begin, stop - begin, scale,
                          row_key(seed, place) + column_key(first), drop);
          log_sum[place] = sum.log_sum;
          factors[r] = sum.factor;
          scores.round_left(r);
        }
        multiply<T>(count, size, width, scores.as_left(), width, values.data() + low * size, size,
                    sums.data(), size, false);
        for (int64_t r = 0; r < count; ++r) {
          T* to_row = out.of(b, h, i + r);
          for (int64_t d = 0; d < size; ++d)
            to_row[d] = static_cast<T>(sums[r * size + d] * factors[r]);
        }
      }
    }
    at::native::cpublas::brgemm_release(kPaired<T>);
  });
}

std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key,
                                             const Tensor& value,
                                             const std::optional<Tensor>& ranges, double dropout,
                                             double scaling, int64_t seed) {
  Shape shape(query);
  TORCH_CHECK(key.sizes() == query.sizes() && value.sizes() == query.sizes());
  TORCH_CHECK(scaling > 0, "scaling = ", scaling);
  Ranges visible = ranges_of(ranges, shape);
  Tensor output = at::empty({shape.batch, shape.length, shape.heads, shape.size}, query.options());
  Tensor log_sums = at::empty({shape.batch, shape.heads, shape.length},
                              query.options().dtype(at::kFloat));
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    attend<T>(shape, Heads<T>(query), Heads<T>(key), Heads<T>(value),
              Heads<T>(output.transpose(1, 2)), log_sums.data_ptr<float>(), visible,
              Dropout(dropout), static_cast<float>(scaling), seed);
  };
  if (query.scalar_type() == at::kBFloat16) run(at::BFloat16(0.0f));
  else run(0.0f);
  return {output, log_sums};
}

template <typename T>
void attend_backward(const Shape& shape, const Heads<T>& dout, const Heads<T>& q,
                     const Heads<T>& k, const Heads<T>& v, const Heads<T>& out,
                     const float* log_sum, const Heads<T>& dq, const Heads<T>& dk,
                     const Heads<T>& dv, const Ranges& visible, Dropout drop, float scale,
                     int64_t seed) {
  at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t from, int64_t to) {
    const int64_t size = shape.size, padded = shape.padded, area = padded * size;
    Block<T> scores((shape.rows + 1) * padded), slopes((shape.rows + 1) * padded);
    std::vector<T> keys_across(area), values_across(area), keys(area);
    std::vector<T> across((shape.rows + 1) * size), room(across.size());
    std::vector<float> of_keys(area), of_values(area), of_queries(shape.rows * size);
    std::vector<float> means(shape.rows);
    const auto softmax = drop.threshold ? softmax_backward_row<true> : softmax_backward_row<false>;
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t b = pair / shape.heads, h = pair % shape.heads;
      pack_transposed(k.of(b, h), k.row, shape.length, padded, size, keys_across.data());
      pack_transposed(v.of(b, h), v.row, shape.length, padded, size, values_across.data());
      pack(k.of(b, h), k.row, shape.length, padded, size, keys.data());
      std::fill(of_keys.begin(), of_keys.end(), 0.0f);
      std::fill(of_values.begin(), of_values.end(), 0.0f);
      for (int64_t i = 0; i < shape.length; i += shape.rows) {
        const int64_t count = std::min(shape.rows, shape.length - i);
        const auto [low, high] = visible.of_block(b, i, count);
        const int64_t width = scores.width = slopes.width = high - low;
        if (width == 0) {
          for (int64_t r = 0; r < count; ++r) std::fill_n(dq.of(b, h, i + r), size, T(0.0f));
          continue;
        }
        // Of all rows at once: row by row each would wait for memory.
        for (int64_t r = 0; r < count; ++r) {
          const T *of_out = dout.of(b, h, i + r), *was = out.of(b, h, i + r);
          means[r] = 0.0f;
          for (int64_t d = 0; d < size; ++d)
            means[r] += static_cast<float>(of_out[d]) * static_cast<float>(was[d]);
        }
        const int64_t start = low * (kPaired<T> ? 2 : 1);
        multiply<T>(count, width, size, q.of(b, h, i), q.row, keys_across.data() + start, padded,
                    scores.row(0), width, false);
        multiply<T>(count, width, size, dout.of(b, h, i), dout.row, values_across.data() + start,
                    padded, slopes.row(0), width, false);
        for (int64_t r = 0; r < count; ++r) {
          float *__restrict row = scores.row(r), *__restrict slope = slopes.row(r);
          const int64_t first = visible.first(b, i + r), end = visible.end(b, i + r);
          const int64_t place = pair * shape.length + i + r;
          const int64_t begin = first < end ? first - low : 0, stop = first < end ? end - low : 0;
          std::fill_n(row, begin, 0.0f);
          std::fill_n(slope, begin, 0.0f);
          std::fill_n(row + stop, width - stop, 0.0f);
          std::fill_n(slope + stop, width - stop, 0.0f);
          softmax(row + begin, slope + begin, stop - begin, log_sum[place], means[r], scale,
                  row_key(seed, place) + column_key(first), drop);
          slopes.round_left(r);
          if (r == count - 1 && r % 2 == 0) {  // nothing stands beside an odd last row
            std::fill_n(scores.row(count), width, 0.0f);
            std::fill_n(slopes.row(count), width, 0.0f);
          }
          if (r == count - 1 || r % 2) {
            scores.round_right(r / 2 * 2);
            slopes.round_right(r / 2 * 2);
          }
        }
        multiply<T>(count, size, width, slopes.as_left(), width, keys.data() + low * size, size,
                    of_queries.data(), size, false);
        for (int64_t r = 0; r < count; ++r)
          std::copy_n(of_queries.data() + r * size, size, dq.of(b, h, i + r));
        // Gradients of keys and values across, [size, length], so that what was just computed is
        // the right side of their products and nothing of that size has to be transposed.
        const int64_t even = kPaired<T> ? count + count % 2 : count;
        transpose_left(dout.of(b, h, i), dout.row, count, size, across.data(), room.data());
        multiply<T>(size, width, even, across.data(), even, scores.as_right(), width,
                    of_values.data() + low, padded, true);
        transpose_left(q.of(b, h, i), q.row, count, size, across.data(), room.data());
        multiply<T>(size, width, even, across.data(), even, slopes.as_right(), width,
                    of_keys.data() + low, padded, true);
      }
      const int64_t stride = padded * sizeof(float);
      transpose(of_keys.data(), stride, size, shape.length, dk.of(b, h), dk.row);
      transpose(of_values.data(), stride, size, shape.length, dv.of(b, h), dv.row);
    }
    at::native::cpublas::brgemm_release(kPaired<T>);
  });
}

// The gradients of query, key and value, written into three tensors like them.
void attention_backward(const Tensor& gradient, const Tensor& query, const Tensor& key,
                        const Tensor& value, const Tensor& output, const Tensor& log_sums,
                        const std::optional<Tensor>& ranges, double dropout, double scaling,
                        int64_t seed, const Tensor& of_query, const Tensor& of_key,
                        const Tensor& of_value) {
  Shape shape(query);
  Ranges visible = ranges_of(ranges, shape);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    attend_backward<T>(shape, Heads<T>(gradient.transpose(1, 2)), Heads<T>(query), Heads<T>(key),
                       Heads<T>(value), Heads<T>(output.transpose(1, 2)),
                       log_sums.data_ptr<float>(), Heads<T>(of_query), Heads<T>(of_key),
                       Heads<T>(of_value), visible, Dropout(dropout), static_cast<float>(scaling),
                       seed);
  };
  if (query.scalar_type() == at::kBFloat16) run(at::BFloat16(0.0f));
  else run(0.0f);
}

// One row of LayerNorm(dropout(input) + residual): the result, the sum before the norm, and its mean
// and 1 / deviation.
template <typename T>
void add_norm_row(const T* __restrict input, const T* __restrict residual,
                  const T* __restrict weight, const T* __restrict bias, T* __restrict output,
                  T* __restrict summed, float* __restrict row, float* __restrict statistics,
                  int hidden, float epsilon, uint32_t key, Dropout dropout) {
  const uint32_t threshold = dropout.threshold;
  const float kept = dropout.kept;
  float sum = 0.0f, squares = 0.0f;
  for (int j = 0; j < hidden; ++j) {
    const float keep = lot(key, j) >= threshold ? kept : 0.0f;
    row[j] = static_cast<float>(input[j]) * keep + static_cast<float>(residual[j]);
    sum += row[j];
  }
  const float mean = sum / hidden;
  for (int j = 0; j < hidden; ++j) squares += (row[j] - mean) * (row[j] - mean);
  const float inverse = 1.0f / std::sqrt(squares / hidden + epsilon);
  statistics[0] = mean;
  statistics[1] = inverse;
  for (int j = 0; j < hidden; ++j) {
    summed[j] = static_cast<T>(row[j]);
    output[j] = static_cast<T>((row[j] - mean) * inverse * static_cast<float>(weight[j]) +
                               static_cast<float>(bias[j]));
  }
}

// One row of the gradients; those of weight and bias are added to `of_weight` and `of_bias`.
template <typename T>
void add_norm_backward_row(const T* __restrict gradient, const T* __restrict summed,
                           const T* __restrict weight, T* __restrict of_input,
                           T* __restrict of_residual, float* __restrict of_weight,
                           float* __restrict of_bias, float* __restrict normed,
                           float* __restrict scaled, int hidden, float mean, float inverse,
                           uint32_t key, Dropout dropout) {
  const uint32_t threshold = dropout.threshold;
  const float kept = dropout.kept;
  float sum = 0.0f, product = 0.0f;
  for (int j = 0; j < hidden; ++j) {
    const float slope = static_cast<float>(gradient[j]);
    const float x = (static_cast<float>(summed[j]) - mean) * inverse;
    const float g = slope * static_cast<float>(weight[j]);
    normed[j] = x;
    scaled[j] = g;
    of_weight[j] += slope * x;
    of_bias[j] += slope;
    sum += g;
    product += g * x;
  }
  sum /= hidden;
  product /= hidden;
  for (int j = 0; j < hidden; ++j) {
    const float of_sum = (scaled[j] - sum - normed[j] * product) * inverse;
    const float keep = lot(key, j) >= threshold ? kept : 0.0f;
    of_residual[j] = static_cast<T>(of_sum);
    of_input[j] = static_cast<T>(of_sum * keep);
  }
}

std::tuple<Tensor, Tensor, Tensor> add_norm_forward(const Tensor& input, const Tensor& residual,
                                                    const Tensor& weight, const Tensor& bias,
                                                    double dropout, double epsilon, int64_t seed) {
  const int64_t hidden = input.size(-1), rows = input.numel() / hidden;
  TORCH_CHECK(input.is_contiguous() && residual.is_contiguous() &&
              input.sizes() == residual.sizes() && weight.numel() == hidden &&
              bias.numel() == hidden && weight.is_contiguous() && bias.is_contiguous());
  Tensor output = at::empty_like(input), summed = at::empty_like(input);
  Tensor statistics = at::empty({rows, 2}, input.options().dtype(at::kFloat));
  const Dropout drop(dropout);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "add_norm_forward", [&] {
    const scalar_t *in = input.data_ptr<scalar_t>(), *rest = residual.data_ptr<scalar_t>(),
                   *gain = weight.data_ptr<scalar_t>(), *add = bias.data_ptr<scalar_t>();
    scalar_t *out = output.data_ptr<scalar_t>(), *sums = summed.data_ptr<scalar_t>();
    float* known = statistics.data_ptr<float>();
    at::parallel_for(0, rows, 16, [&](int64_t from, int64_t to) {
      std::vector<float> buffer(hidden);
      for (int64_t i = from; i < to; ++i) {
        const int64_t at = i * hidden;
        add_norm_row(in + at, rest + at, gain, add, out + at, sums + at, buffer.data(),
                     known + 2 * i, hidden, static_cast<float>(epsilon), row_key(seed, i), drop);
      }
    });
  });
  return {output, summed, statistics};
}

// The gradients of input, residual, weight and bias.
std::tuple<Tensor, Tensor, Tensor, Tensor> add_norm_backward(const Tensor& gradient,
                                                             const Tensor& summed,
                                                             const Tensor& statistics,
                                                             const Tensor& weight, double dropout,
                                                             int64_t seed) {
  const int64_t hidden = summed.size(-1), rows = summed.numel() / hidden;
  TORCH_CHECK(gradient.is_contiguous());
  Tensor of_input = at::empty_like(summed), of_residual = at::empty_like(summed);
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows));
  Tensor partial = at::zeros({parts, 2, hidden}, statistics.options());
  const Dropout drop(dropout);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, summed.scalar_type(), "add_norm_backward", [&] {
    const scalar_t *slope = gradient.data_ptr<scalar_t>(), *sums = summed.data_ptr<scalar_t>(),
                   *gain = weight.data_ptr<scalar_t>();
    scalar_t *d_in = of_input.data_ptr<scalar_t>(), *d_rest = of_residual.data_ptr<scalar_t>();
    const float* known = statistics.data_ptr<float>();
    at::parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
      std::vector<float> normed(hidden), scaled(hidden);
      for (int64_t part = first_part; part < last_part; ++part) {
        float *d_gain = partial.data_ptr<float>() + part * 2 * hidden, *d_bias = d_gain + hidden;
        for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; ++i) {
          const int64_t at = i * hidden;
          add_norm_backward_row(slope + at, sums + at, gain, d_in + at, d_rest + at, d_gain, d_bias,
                                normed.data(), scaled.data(), hidden, known[2 * i],
                                known[2 * i + 1], row_key(seed, i), drop);
        }
      }
    });
  });
  Tensor whole = partial.sum(0);
  return {of_input, of_residual, whole[0].to(weight.scalar_type()),
          whole[1].to(weight.scalar_type())};
}

// GELU(input + bias), by the normal distribution's own function.
Tensor bias_gelu_forward(const Tensor& input, const Tensor& bias) {
  const int64_t width = input.size(-1), rows = input.numel() / width;
  TORCH_CHECK(input.is_contiguous() && bias.is_contiguous() && bias.numel() == width);
  Tensor output = at::empty_like(input);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "bias_gelu_forward", [&] {
    const scalar_t *in = input.data_ptr<scalar_t>(), *add = bias.data_ptr<scalar_t>();
    scalar_t* out = output.data_ptr<scalar_t>();
    at::parallel_for(0, rows, 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        for (int64_t j = 0; j < width; ++j) {
          const float x = static_cast<float>(in[i * width + j]) + static_cast<float>(add[j]);
          out[i * width + j] = static_cast<scalar_t>(x * gaussian(x).cumulative);
        }
    });
  });
  return output;
}

// The gradients of input and bias.
std::tuple<Tensor, Tensor> bias_gelu_backward(const Tensor& gradient, const Tensor& input,
                                              const Tensor& bias) {
  const int64_t width = input.size(-1), rows = input.numel() / width;
  TORCH_CHECK(gradient.is_contiguous());
  Tensor of_input = at::empty_like(input);
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows));
  Tensor partial = at::zeros({parts, width}, input.options().dtype(at::kFloat));
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, input.scalar_type(), "bias_gelu_backward", [&] {
    const scalar_t *in = input.data_ptr<scalar_t>(), *add = bias.data_ptr<scalar_t>(),
                   *dy = gradient.data_ptr<scalar_t>();
    scalar_t* dx = of_input.data_ptr<scalar_t>();
    at::parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
      for (int64_t part = first_part; part < last_part; ++part) {
        float* d_bias = partial.data_ptr<float>() + part * width;
        for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; ++i)
          for (int64_t j = 0; j < width; ++j) {
            const float x = static_cast<float>(in[i * width + j]) + static_cast<float>(add[j]);
            const Gaussian normal = gaussian(x);
            const float slope = static_cast<float>(dy[i * width + j]) *
                                (normal.cumulative + x * normal.density);
            dx[i * width + j] = static_cast<scalar_t>(slope);
            d_bias[j] += slope;
          }
      }
    });
  });
  return {of_input, partial.sum(0).to(bias.scalar_type())};
}

// Whether bfloat16 is multiplied here: by oneDNN's micro-kernels alone, which not every build has.
bool multiplies_bfloat16() {
  try {
    std::vector<at::BFloat16> ones(4 * kStep, at::BFloat16(1.0f));
    std::vector<float> product(4);
    multiply<at::BFloat16>(2, 2, 2, ones.data(), 2, ones.data(), 2, product.data(), 2, false);
    at::native::cpublas::brgemm_release(true);
    return product[0] == 2.0f;
  } catch (const c10::Error&) {
    return false;
  }
}

// The cross entropy of one row of logits and whether its label has the largest; where `slopes` is
// not null the logits become their gradients, which are added to it.
template <typename T>
std::pair<float, bool> cross_entropy_row(T* __restrict logits, int64_t classes, int64_t truth,
                                         float* __restrict slopes) {
  float largest = kLowest, sum = 0.0f;
#pragma omp simd reduction(max : largest)
  for (int64_t j = 0; j < classes; ++j) {
    const float logit = static_cast<float>(logits[j]);
    largest = logit > largest ? logit : largest;
  }
  for (int64_t j = 0; j < classes; ++j) sum += exponential(static_cast<float>(logits[j]) - largest);
  const float at_truth = static_cast<float>(logits[truth]);
  bool hit = at_truth == largest;
  for (int64_t j = 0; hit && j < truth; ++j) hit = static_cast<float>(logits[j]) < largest;
  const float loss = largest - at_truth + std::log(sum);
  if (slopes == nullptr) return {loss, hit};
  const float factor = 1.0f / sum;
  for (int64_t j = 0; j < classes; ++j) {
    const float slope = exponential(static_cast<float>(logits[j]) - largest) * factor;
    slopes[j] += slope;
    logits[j] = static_cast<T>(slope);
  }
  slopes[truth] -= 1.0f;
  logits[truth] = static_cast<T>(std::exp(at_truth - largest) * factor - 1.0f);
  return {loss, hit};
}

// Cross entropies and hits of rows, [rows]; where gradients are wanted they take the logits' place,
// and their sums over the rows, [classes], are returned too.
std::tuple<Tensor, Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& labels,
                                                 bool wanted) {
  const int64_t rows = logits.size(0), classes = logits.size(1);
  TORCH_CHECK(logits.is_contiguous() && labels.is_contiguous() && labels.size(0) == rows);
  Tensor losses = at::empty({rows}, logits.options().dtype(at::kFloat));
  Tensor hits = at::empty({rows}, logits.options().dtype(at::kBool));
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(at::get_num_threads(), rows));
  Tensor sums = at::zeros({wanted ? parts : 0, classes}, losses.options());
  const int64_t* label = labels.data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, logits.scalar_type(), "cross_entropy", [&] {
    scalar_t* data = logits.data_ptr<scalar_t>();
    at::parallel_for(0, parts, 1, [&](int64_t first_part, int64_t last_part) {
      for (int64_t part = first_part; part < last_part; ++part) {
        float* slopes = wanted ? sums.data_ptr<float>() + part * classes : nullptr;
        for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; ++i) {
          TORCH_CHECK(label[i] >= 0 && label[i] < classes, "label ", label[i]);
          const auto [loss, hit] = cross_entropy_row(data + i * classes, classes, label[i], slopes);
          losses.data_ptr<float>()[i] = loss;
          hits.data_ptr<bool>()[i] = hit;
        }
      }
    });
  });
  return {losses, hits, sums.sum(0)};
}

}  // namespace

TORCH_LIBRARY(LERT_DS_LIBRARY, library) {
  library.def(
      "attention_forward(Tensor query, Tensor key, Tensor value, Tensor? ranges, float dropout, "
      "float scaling, int seed) -> (Tensor, Tensor)",
      &attention_forward);
  library.def(
      "attention_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, "
      "Tensor log_sums, Tensor? ranges, float dropout, float scaling, int seed, "
      "Tensor(a!) of_query, Tensor(b!) of_key, Tensor(c!) of_value) -> ()",
      &attention_backward);
  library.def(
      "add_norm_forward(Tensor input, Tensor residual, Tensor weight, Tensor bias, float dropout, "
      "float epsilon, int seed) -> (Tensor, Tensor, Tensor)",
      &add_norm_forward);
  library.def(
      "add_norm_backward(Tensor gradient, Tensor summed, Tensor statistics, Tensor weight, "
      "float dropout, int seed) -> (Tensor, Tensor, Tensor, Tensor)",
      &add_norm_backward);
  library.def("multiplies_bfloat16() -> bool", &multiplies_bfloat16);
  library.def(
      "cross_entropy(Tensor(a!) logits, Tensor labels, bool wanted) -> (Tensor, Tensor, Tensor)",
      &cross_entropy);
  library.def("transposed(Tensor matrix) -> Tensor", &transposed);
  library.def("bias_gelu_forward(Tensor input, Tensor bias) -> Tensor", &bias_gelu_forward);
  library.def("bias_gelu_backward(Tensor gradient, Tensor input, Tensor bias) -> (Tensor, Tensor)",
              &bias_gelu_backward);
}
