// Kernels for a processor core, as a library of PyTorch's; each is one header, of internal linkage.
//
// The loops are plain C++ that the compiler vectorises; products are oneDNN's micro-kernels, which
// PyTorch brings along, in float32 or in bfloat16 with float32 sums.
#include <torch/library.h>

#include "add_norm.h"
#include "attention.h"
#include "bias_gelu.h"
#include "cross_entropy.h"
#include "matrices.h"

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
