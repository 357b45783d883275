// LayerNorm(dropout(input) + residual) in one pass over memory, and its gradients in another.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "numbers.h"

namespace {

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

}  // namespace
