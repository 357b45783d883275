// Kernels for a processor core: attention with dropout, dropout-add-LayerNorm, bias-GELU.
//
// What PyTorch leaves on the table in a training step of LERT-small at length 512 (fp32, one core):
// with dropout its attention writes and reads four tensors of batch x heads x length x length, 16 MB
// each a layer, and draws its masks one number after the other. Here a block of query rows is
// multiplied, normalised, dropped and multiplied again while it lies in the second-level cache, and
// a mask is a hash of (seed, row, column), which is computed again in the backward pass: nothing of
// the size length x length is ever kept. The products are the BLAS library's own (sgemm), which
// PyTorch brings along; the loops between are plain C++ that the compiler vectorises.
//
// The hash: rows get 64 bits of SplitMix64 each, of which 32 are the row's key; column j of the row
// is murmur3's finaliser of key + j * 0x9E3779B9, and a unit is dropped where the result, an
// unsigned number of 32 bits, lies below p * 2^32.
#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <tuple>
#include <vector>

extern "C" void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*,
                       const float*, const int*, const float*, const int*, const float*, float*,
                       const int*);

namespace {

using at::Tensor;

// Bytes of the two score blocks that a thread works on: half of a small second-level cache.
constexpr int64_t kBlockBytes = 256 * 1024;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// C = alpha * op(A) op(B) + beta * C, all row-major; BLAS is column-major, so A and B change places.
void multiply(bool transpose_a, bool transpose_b, int m, int n, int k, float alpha, const float* a,
              int lda, const float* b, int ldb, float beta, float* c, int ldc) {
  sgemm_(transpose_b ? "T" : "N", transpose_a ? "T" : "N", &n, &m, &k, &alpha, b, &ldb, a, &lda,
         &beta, c, &ldc);
}

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

// e to the x for x <= 0 or small; relative error below 2e-7 (Cephes' polynomial of degree 6).
inline float fast_exp(float x) {
  x = std::max(x, -87.0f);
  float n = std::nearbyint(x * 1.44269504f);
  float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
}

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

// Scores of one row to dropped probabilities, in place; returns the log of the sum of exponentials.
float softmax_row(float* __restrict row, int count, uint32_t key, Dropout dropout) {
  float largest = kLowest, sum = 0.0f;
  for (int j = 0; j < count; ++j) largest = std::max(largest, row[j]);
  for (int j = 0; j < count; ++j) {
    row[j] = fast_exp(row[j] - largest);
    sum += row[j];
  }
  const float factor = dropout.kept / sum;
  const uint32_t threshold = dropout.threshold;
  if (threshold == 0) {
    for (int j = 0; j < count; ++j) row[j] *= factor;
  } else {
    for (int j = 0; j < count; ++j) {
      const float keep = lot(key, j) >= threshold ? factor : 0.0f;
      row[j] *= keep;
    }
  }
  return largest + std::log(sum);
}

// Scores of one row to dropped probabilities, and the gradients of these to those of the scores.
void softmax_backward_row(float* __restrict row, float* __restrict slope, int count, float log_sum,
                          float mean, float scale, uint32_t key, Dropout dropout) {
  const uint32_t threshold = dropout.threshold;
  const float kept = dropout.kept;
  for (int j = 0; j < count; ++j) {
    const float probability = fast_exp(row[j] - log_sum);
    const float keep = lot(key, j) >= threshold ? kept : 0.0f;
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
  float z = std::fabs(x) * 0.70710678f;
  float e = fast_exp(-z * z);
  float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  float upper = 0.5f * p * t * e;  // 1 - Phi(|x|)
  return {x < 0 ? upper : 1.0f - upper, 0.39894228f * e};
}

// A tensor [batch, heads, length, size] whose last dimension is contiguous.
struct Heads {
  float* data;
  int64_t batch, head, row;
  explicit Heads(const Tensor& tensor)
      : data(tensor.data_ptr<float>()),
        batch(tensor.stride(0)),
        head(tensor.stride(1)),
        // Of a single row any number may be given; BLAS takes none below the size.
        row(tensor.size(2) == 1 ? tensor.size(3) : tensor.stride(2)) {
    TORCH_CHECK(tensor.dim() == 4 && (tensor.size(3) == 1 || tensor.stride(3) == 1));
    TORCH_CHECK(row >= tensor.size(3), "rows that overlap");
  }
  float* of(int64_t b, int64_t h, int64_t i = 0) const {
    return data + b * batch + h * head + i * row;
  }
};

struct Shape {
  int64_t batch, heads, length, size, rows;
  explicit Shape(const Tensor& query)
      : batch(query.size(0)), heads(query.size(1)), length(query.size(2)), size(query.size(3)) {
    rows = std::min<int64_t>(128, std::max<int64_t>(16, kBlockBytes / 8 / length));
  }
};

// Which keys [first, end) each query may see, and those of a block of queries.
struct Ranges {
  const int32_t* data;  // [batch, length, 2], or null where all see all
  int64_t length;
  int64_t first(int64_t b, int64_t i) const { return data ? data[(b * length + i) * 2] : 0; }
  int64_t end(int64_t b, int64_t i) const { return data ? data[(b * length + i) * 2 + 1] : length; }
  std::pair<int64_t, int64_t> of_block(int64_t b, int64_t i, int64_t count) const {
    if (!data) return {0, length};
    int64_t low = length, high = 0;
    for (int64_t row = i; row < i + count; ++row) {
      low = std::min(low, first(b, row));
      high = std::max(high, end(b, row));
    }
    return {low, std::max(high, low)};
  }
};

Ranges ranges_of(const std::optional<Tensor>& ranges, const Shape& shape) {
  if (!ranges.has_value()) return {nullptr, shape.length};
  TORCH_CHECK(ranges->is_contiguous() && ranges->dim() == 3 && ranges->size(0) == shape.batch &&
                  ranges->size(1) == shape.length && ranges->size(2) == 2,
              "ranges of another shape");
  return {ranges->data_ptr<int32_t>(), shape.length};
}

// dropout(softmax(q k^T * scale)) v. Returns [batch, length, heads, size] and the log of each row's
// sum of exponentials, [batch, heads, length].
std::tuple<Tensor, Tensor> attention_forward(const Tensor& query, const Tensor& key,
                                             const Tensor& value,
                                             const std::optional<Tensor>& ranges, double dropout,
                                             double scaling, int64_t seed) {
  Shape shape(query);
  TORCH_CHECK(key.sizes() == query.sizes() && value.sizes() == query.sizes());
  Heads q(query), k(key), v(value);
  Ranges visible = ranges_of(ranges, shape);
  Tensor output = at::empty({shape.batch, shape.length, shape.heads, shape.size}, query.options());
  Tensor log_sums = at::empty({shape.batch, shape.heads, shape.length}, query.options());
  Heads out(output.transpose(1, 2));
  float* log_sum = log_sums.data_ptr<float>();
  const Dropout drop(dropout);
  const float scale = static_cast<float>(scaling);
  at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t from, int64_t to) {
    std::vector<float> block(shape.rows * shape.length);
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t b = pair / shape.heads, h = pair % shape.heads;
      for (int64_t i = 0; i < shape.length; i += shape.rows) {
        const int count = std::min(shape.rows, shape.length - i);
        auto [low, high] = visible.of_block(b, i, count);
        const int width = high - low;
        if (width == 0) {
          for (int r = 0; r < count; ++r) {
            std::fill_n(out.of(b, h, i + r), shape.size, 0.0f);
            log_sum[pair * shape.length + i + r] = 0.0f;
          }
          continue;
        }
        float* scores = block.data();
        multiply(false, true, count, width, shape.size, scale, q.of(b, h, i), q.row,
                 k.of(b, h, low), k.row, 0.0f, scores, width);
        for (int r = 0; r < count; ++r) {
          float* __restrict row = scores + static_cast<int64_t>(r) * width;
          const int first = visible.first(b, i + r) - low, end = visible.end(b, i + r) - low;
          const int64_t place = pair * shape.length + i + r;
          std::fill_n(row, first, 0.0f);
          std::fill_n(row + end, width - end, 0.0f);
          log_sum[place] = 0.0f;
          if (first < end)
            log_sum[place] = softmax_row(row + first, end - first,
                                         row_key(seed, place) + column_key(low + first), drop);
        }
        multiply(false, false, count, shape.size, width, 1.0f, scores, width, v.of(b, h, low),
                 v.row, 0.0f, out.of(b, h, i), out.row);
      }
    }
  });
  return {output, log_sums};
}

// The gradients of query, key and value, written into three tensors like them.
void attention_backward(const Tensor& gradient, const Tensor& query, const Tensor& key,
                        const Tensor& value, const Tensor& output, const Tensor& log_sums,
                        const std::optional<Tensor>& ranges, double dropout, double scaling,
                        int64_t seed, const Tensor& of_query, const Tensor& of_key,
                        const Tensor& of_value) {
  Shape shape(query);
  Heads q(query), k(key), v(value), dq(of_query), dk(of_key), dv(of_value);
  Heads out(output.transpose(1, 2)), dout(gradient.transpose(1, 2));
  Ranges visible = ranges_of(ranges, shape);
  const float* log_sum = log_sums.data_ptr<float>();
  const Dropout drop(dropout);
  const float scale = static_cast<float>(scaling);
  at::parallel_for(0, shape.batch * shape.heads, 1, [&](int64_t from, int64_t to) {
    std::vector<float> first_block(shape.rows * shape.length), other_block(first_block.size());
    for (int64_t pair = from; pair < to; ++pair) {
      const int64_t b = pair / shape.heads, h = pair % shape.heads;
      for (int64_t j = 0; j < shape.length; ++j) {
        std::fill_n(dk.of(b, h, j), shape.size, 0.0f);
        std::fill_n(dv.of(b, h, j), shape.size, 0.0f);
      }
      for (int64_t i = 0; i < shape.length; i += shape.rows) {
        const int count = std::min(shape.rows, shape.length - i);
        auto [low, high] = visible.of_block(b, i, count);
        const int width = high - low;
        if (width == 0) {
          for (int r = 0; r < count; ++r) std::fill_n(dq.of(b, h, i + r), shape.size, 0.0f);
          continue;
        }
        float *scores = first_block.data(), *slopes = other_block.data();
        multiply(false, true, count, width, shape.size, scale, q.of(b, h, i), q.row,
                 k.of(b, h, low), k.row, 0.0f, scores, width);
        multiply(false, true, count, width, shape.size, 1.0f, dout.of(b, h, i), dout.row,
                 v.of(b, h, low), v.row, 0.0f, slopes, width);
        for (int r = 0; r < count; ++r) {
          float* __restrict row = scores + static_cast<int64_t>(r) * width;
          float* __restrict slope = slopes + static_cast<int64_t>(r) * width;
          const int first = visible.first(b, i + r) - low, end = visible.end(b, i + r) - low;
          const float *of_out = dout.of(b, h, i + r), *was = out.of(b, h, i + r);
          float mean = 0.0f;
          for (int64_t d = 0; d < shape.size; ++d) mean += of_out[d] * was[d];
          const int64_t place = pair * shape.length + i + r;
          std::fill_n(row, first, 0.0f);
          std::fill_n(slope, first, 0.0f);
          std::fill_n(row + end, width - end, 0.0f);
          std::fill_n(slope + end, width - end, 0.0f);
          softmax_backward_row(row + first, slope + first, end - first, log_sum[place], mean, scale,
                               row_key(seed, place) + column_key(low + first), drop);
        }
        multiply(true, false, width, shape.size, count, 1.0f, scores, width, dout.of(b, h, i),
                 dout.row, 1.0f, dv.of(b, h, low), dv.row);
        multiply(true, false, width, shape.size, count, 1.0f, slopes, width, q.of(b, h, i), q.row,
                 1.0f, dk.of(b, h, low), dk.row);
        multiply(false, false, count, shape.size, width, 1.0f, slopes, width, k.of(b, h, low),
                 k.row, 0.0f, dq.of(b, h, i), dq.row);
      }
    }
  });
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
  library.def("bias_gelu_forward(Tensor input, Tensor bias) -> Tensor", &bias_gelu_forward);
  library.def("bias_gelu_backward(Tensor gradient, Tensor input, Tensor bias) -> (Tensor, Tensor)",
              &bias_gelu_backward);
}
