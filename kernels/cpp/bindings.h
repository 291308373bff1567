// What the bindings share: tensors as kernels take them, noise, threads.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include "kernels.h"

namespace ncsn_fast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The kernels in use, of the best capability unless a test has chosen another.
const Table& table();

// Elements of simple work that are worth a thread of their own, and of noise or the like.
constexpr int64_t LIGHT = 65536, HEAVY = 16384;

// Runs a kernel on items that are about `elements` each, on as many threads as that is worth.
template <class Run>
void in_parallel(int64_t items, int64_t elements, int64_t grain, const Run& run) {
  if (items <= 0) return;
  elements = std::max<int64_t>(1, elements);
  at::parallel_for(0, items, std::max<int64_t>(1, grain / elements), run);
}

// In the order of the enumeration, by the names of ncsn_fast.reference.ACTIVATIONS; "" is none.
Activation activation_of(std::string_view name);

// Whether a dense tensor is in (N, H, W, C) order and not in (N, C, H, W) order as well.
bool is_last(const Tensor& tensor);

// The tensor itself where it is dense in one of the two orders, else a contiguous copy.
Tensor dense(const Tensor& tensor);

// A tensor laid out as another one is.
Tensor dense_like(const Tensor& tensor, const Tensor& like);

Tensor empty_like(const Tensor& tensor);

// Of a dense tensor; refuses types that kernels do not know.
Array array_of(const Tensor& tensor);
Array array_of(const OptionalTensor& tensor);

// Of (N, *shape); three or fewer dimensions are one row of pixels.
Shape shape_of(const Tensor& tensor);

// Of (N, C, H, W), which is refused for other dimensions.
Shape images_of(const Tensor& tensor);

// A contiguous float32 tensor's numbers, or null for none; refuses others.
const float* floats_of(const Tensor& tensor);
const float* floats_of(const OptionalTensor& tensor);

Noise noise_of(
    const Tensor& seed, const Tensor& step, const Tensor& sample_ids, int64_t stream,
    const Shape& shape);

}  // namespace ncsn_fast
