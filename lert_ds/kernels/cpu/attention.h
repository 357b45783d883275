// Attention with dropout, a block of query rows at a time.
//
// With dropout PyTorch's writes and reads four tensors of batch x heads x length x length, 16 MB each
// a layer of LERT-small at length 512, and draws its masks one number after the other. Here a block
// is multiplied, normalised, dropped and multiplied again while it lies in the second-level cache,
// and its mask is hashed again in the backward pass: nothing of the size length x length is kept.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "matrices.h"
#include "numbers.h"

namespace {

// Bytes of the two score blocks that a thread works on: half of a small second-level cache.
constexpr int64_t kBlockBytes = 256 * 1024;

constexpr int64_t kStep = 32;  // Widths of blocks are multiples of it, so that few kernels are made.

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

}  // namespace
