// Cross entropies of rows of logits, and their gradients in the logits' place.
#pragma once

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "numbers.h"

namespace {

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
