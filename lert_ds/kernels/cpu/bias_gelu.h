// GELU(input + bias) in one pass over memory, and its gradients in another.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <tuple>

#include "numbers.h"

namespace {

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
