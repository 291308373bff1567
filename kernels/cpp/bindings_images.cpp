// The kernels as PyTorch operations torch.ops.ncsn_fast_cpp.*: what a network of images is made of.
//
// Results have the memory format of the first tensor; tensors that go with it are brought to it.
#include "bindings.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <memory>

namespace ncsn_fast {
namespace {

OptionalTensor optional_like(const OptionalTensor& tensor, const Tensor& like) {
  return tensor ? OptionalTensor(dense_like(*tensor, like)) : std::nullopt;
}

using PointwiseKernel = void (*)(const Pointwise&, int64_t, int64_t);

void run_pointwise(PointwiseKernel kernel, const Pointwise& p) {
  in_parallel((p.total + TILE - 1) / TILE, TILE, LIGHT, [&](int64_t first, int64_t last) {
    kernel(p, first, last);
  });
}

Tensor activate(const Tensor& x_given, c10::string_view activation) {
  const Tensor x = dense(x_given);
  Tensor out = empty_like(x);
  Pointwise p{};
  p.total = x.numel();
  p.activation = activation_of({activation.data(), activation.size()});
  p.x = array_of(x);
  p.out = array_of(out);
  run_pointwise(table().activate, p);
  return out;
}

// grad·act'(x), plus another gradient of x where there is one.
Tensor activate_backward(
    const Tensor& x_given, const Tensor& grad_given, const OptionalTensor& other_given,
    c10::string_view activation) {
  const Tensor x = dense(x_given), grad = dense_like(grad_given, x);
  const OptionalTensor other = optional_like(other_given, x);
  Tensor out = empty_like(x);
  Pointwise p{};
  p.total = x.numel();
  p.activation = activation_of({activation.data(), activation.size()});
  p.x = array_of(x);
  p.grad = array_of(grad);
  p.other = array_of(other);
  p.out = array_of(out);
  run_pointwise(table().activate_backward, p);
  return out;
}

// x + residual and its activation; the same tensor twice without one.
std::tuple<Tensor, Tensor> residual_add(
    const Tensor& x_given, const Tensor& residual_given, c10::string_view activation) {
  TORCH_CHECK_VALUE(
      residual_given.scalar_type() == x_given.scalar_type() &&
          residual_given.sizes() == x_given.sizes(),
      "x and residual have to agree in type and shape, not be ", x_given.scalar_type(), " ",
      x_given.sizes(), " and ", residual_given.scalar_type(), " ", residual_given.sizes());
  const Tensor x = dense(x_given), residual = dense_like(residual_given, x);
  Tensor total = empty_like(x);
  Pointwise p{};
  p.total = x.numel();
  p.activation = activation_of({activation.data(), activation.size()});
  Tensor active = p.activation == Activation::none ? total : empty_like(x);
  p.x = array_of(x);
  p.other = array_of(residual);
  p.out = array_of(total);
  if (p.activation != Activation::none) p.active = array_of(active);
  run_pointwise(table().residual_add, p);
  return {total, active};
}

// γ, α, β as float32, and which row belongs to a sample.
void set_parameters(
    Norm& m, const Tensor& x, const Tensor& gamma, const Tensor& alpha, const Tensor& beta) {
  m.shape = images_of(x);
  m.row_stride = gamma.dim() == 2 ? m.shape.channels : 0;
  m.gamma = floats_of(gamma);
  m.alpha = floats_of(alpha);
  m.beta = floats_of(beta);
}

// Rows of (K, N, C) that a kernel keeps its statistics in.
template <size_t K>
void set_rows(const Tensor& rows, const Norm& m, float** const (&names)[K]) {
  auto* at = const_cast<float*>(floats_of(rows));
  for (float** name : names) {
    *name = at;
    at += m.shape.samples * m.shape.channels;
  }
}

// Each sample by one thread, which then finds it in its cache; where samples are fewer than
// threads, these share each one.
template <class Images, class Sample>
void by_samples(
    const Norm& m, bool last, const Images& before, const Sample& sample, const Images& after) {
  const int64_t items = image_items(m.shape, last) / m.shape.samples;
  const int64_t samples = m.shape.samples, elements = m.shape.elements();
  if (samples >= at::get_num_threads()) {
    in_parallel(samples, elements, HEAVY, [&](int64_t first, int64_t end) {
      for (int64_t i = first; i < end; ++i) {
        before(i * items, (i + 1) * items);
        sample(i);
        after(i * items, (i + 1) * items);
      }
    });
    return;
  }
  in_parallel(samples * items, elements / items, HEAVY, before);
  for (int64_t i = 0; i < samples; ++i) sample(i);
  in_parallel(samples * items, elements / items, HEAVY, after);
}

using Images = std::function<void(int64_t, int64_t)>;

// y, and the statistics (4, N, C) that the backward pass needs.
std::tuple<Tensor, Tensor> instance_norm_plus(
    const Tensor& x_given, const Tensor& gamma, const Tensor& alpha, const Tensor& beta, double eps,
    c10::string_view activation) {
  const Tensor x = dense(x_given);
  Tensor y = empty_like(x);
  Norm m{};
  set_parameters(m, x, gamma, alpha, beta);
  Tensor rows = at::empty({4, m.shape.samples, m.shape.channels}, at::kFloat);
  set_rows(rows, m, {&m.mean, &m.variance, &m.scale, &m.shift});
  if (m.shape.total() == 0) return {y, rows};
  m.eps = static_cast<float>(eps);
  m.activation = activation_of({activation.data(), activation.size()});
  m.x = array_of(x);
  m.y = array_of(y);
  const Table& k = table();
  by_samples(
      m, m.x.last, Images([&](int64_t first, int64_t last) { k.norm_moments(m, first, last); }),
      [&](int64_t sample) { k.norm_coefficients(m, sample); },
      Images([&](int64_t first, int64_t last) { k.norm_apply(m, first, last); }));
  return {y, rows};
}

// dx, and the gradients (3, N, C) of each sample's γ, α, β.
std::tuple<Tensor, Tensor> instance_norm_plus_backward(
    const Tensor& grad_given, const Tensor& x_given, const Tensor& gamma, const Tensor& alpha,
    const Tensor& beta, const Tensor& statistics, double eps, c10::string_view activation) {
  const Tensor x = dense(x_given), grad = dense_like(grad_given, x);
  Tensor dx = empty_like(x);
  Norm m{};
  set_parameters(m, x, gamma, alpha, beta);
  const int64_t samples = m.shape.samples, channels = m.shape.channels;
  Tensor work = at::empty({2, samples, channels}, at::kFloat);
  Tensor gradients = at::zeros({3, samples, channels}, at::kFloat);
  set_rows(statistics, m, {&m.mean, &m.variance, &m.scale, &m.shift});
  set_rows(work, m, {&m.slope, &m.offset});
  set_rows(gradients, m, {&m.dgamma, &m.dalpha, &m.dbeta});
  m.eps = static_cast<float>(eps);
  m.activation = activation_of({activation.data(), activation.size()});
  m.x = array_of(x);
  m.grad = array_of(grad);
  m.dx = array_of(dx);
  const Table& k = table();
  if (m.shape.total() != 0) {
    by_samples(
        m, m.x.last, Images([&](int64_t first, int64_t last) { k.norm_sums(m, first, last); }),
        [&](int64_t sample) { k.norm_slopes(m, sample); },
        Images([&](int64_t first, int64_t last) { k.norm_backward(m, first, last); }));
  }
  return {dx, gradients};
}

// Runs a kernel over images, each thread with its own scratch memory.
template <class Kernel, class Arguments>
void run_images(
    Kernel kernel, const Arguments& arguments, bool last, size_t scratch, int64_t grain) {
  const int64_t items = image_items(arguments.shape, last);
  if (arguments.shape.total() == 0) return;
  in_parallel(items, arguments.shape.total() / items, grain, [&](int64_t first, int64_t end) {
    const std::unique_ptr<float[]> memory(new float[scratch / sizeof(float)]);
    kernel(arguments, first, end, memory.get());
  });
}

// act(x), which is x itself without an activation, and its maxima.
std::tuple<Tensor, Tensor> max_pool5(const Tensor& x_given, c10::string_view activation) {
  const Tensor x = dense(x_given);
  Pool p{};
  p.shape = images_of(x);
  p.activation = activation_of({activation.data(), activation.size()});
  const bool plain = p.activation == Activation::none;
  Tensor active = plain ? x : empty_like(x), pooled = empty_like(x);
  p.x = array_of(x);
  if (!plain) p.active = array_of(active);
  p.pooled = array_of(pooled);
  run_images(table().max_pool5, p, p.x.last, p.scratch(false), HEAVY);
  return {active, pooled};
}

Tensor max_pool5_backward(
    const Tensor& x_given, const OptionalTensor& dactive_given, const Tensor& dpooled_given,
    c10::string_view activation) {
  const Tensor x = dense(x_given), dpooled = dense_like(dpooled_given, x);
  const OptionalTensor dactive = optional_like(dactive_given, x);
  Tensor dx = empty_like(x);
  Pool p{};
  p.shape = images_of(x);
  p.activation = activation_of({activation.data(), activation.size()});
  p.x = array_of(x);
  p.dactive = array_of(dactive);
  p.dpooled = array_of(dpooled);
  p.dx = array_of(dx);
  run_images(table().max_pool5_backward, p, p.x.last, p.scratch(true), HEAVY);
  return dx;
}

// Where the pixels of one axis come from, corners aligned.
struct AxisTable {
  std::vector<int32_t> low, high;
  std::vector<float> weight;

  AxisTable(int64_t from, int64_t to) {
    const double scale = to > 1 ? static_cast<double>(from - 1) / static_cast<double>(to - 1) : 0.0;
    for (int64_t i = 0; i < to; ++i) {
      const double at = scale * static_cast<double>(i);
      const auto below = std::min<int64_t>(static_cast<int64_t>(at), from - 1);
      low.push_back(static_cast<int32_t>(below));
      high.push_back(static_cast<int32_t>(std::min(below + 1, from - 1)));
      weight.push_back(static_cast<float>(at - static_cast<double>(below)));
    }
  }
  Axis axis() const { return {low.data(), high.data(), weight.data()}; }
};

Tensor resize_add(const Tensor& x_given, const Tensor& base_given) {
  const Tensor base = dense(base_given), x = dense_like(x_given, base);
  Tensor out = empty_like(base);
  Resize s{};
  s.shape = images_of(base);
  s.height = x.size(2);
  s.width = x.size(3);
  const AxisTable rows(s.height, s.shape.height), columns(s.width, s.shape.width);
  s.rows = rows.axis();
  s.columns = columns.axis();
  s.x = array_of(x);
  s.base = array_of(base);
  s.out = array_of(out);
  s.x.last = s.out.last;  // one column of pixels is dense in both orders
  run_images(table().resize_add, s, s.out.last, s.scratch(false), HEAVY);
  return out;
}

// The gradient of x, which is (N, C, height, width), from that of the result.
Tensor resize_add_backward(const Tensor& grad_given, int64_t height, int64_t width) {
  const Tensor grad = dense(grad_given);
  Resize s{};
  s.shape = images_of(grad);
  s.height = height;
  s.width = width;
  s.base = array_of(grad);
  Tensor dx = at::empty(
      {s.shape.samples, s.shape.channels, height, width}, grad.options(),
      s.base.last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  const AxisTable rows(height, s.shape.height), columns(width, s.shape.width);
  s.rows = rows.axis();
  s.columns = columns.axis();
  s.x = array_of(dx);
  s.x.last = s.base.last;
  run_images(table().resize_backward, s, s.base.last, s.scratch(true), HEAVY);
  return dx;
}

}  // namespace
}  // namespace ncsn_fast

TORCH_LIBRARY_FRAGMENT(ncsn_fast_cpp, m) {
  m.def("activate(Tensor x, str activation) -> Tensor", &ncsn_fast::activate);
  m.def(
      "activate_backward(Tensor x, Tensor grad, Tensor? other, str activation) -> Tensor",
      &ncsn_fast::activate_backward);
  m.def(
      "residual_add(Tensor x, Tensor residual, str activation) -> (Tensor, Tensor)",
      &ncsn_fast::residual_add);
  m.def(
      "instance_norm_plus(Tensor x, Tensor gamma, Tensor alpha, Tensor beta, float eps, "
      "str activation) -> (Tensor, Tensor)",
      &ncsn_fast::instance_norm_plus);
  m.def(
      "instance_norm_plus_backward(Tensor grad, Tensor x, Tensor gamma, Tensor alpha, Tensor beta, "
      "Tensor statistics, float eps, str activation) -> (Tensor, Tensor)",
      &ncsn_fast::instance_norm_plus_backward);
  m.def(
      "max_pool5(Tensor x, str activation) -> (Tensor, Tensor)", &ncsn_fast::max_pool5);
  m.def(
      "max_pool5_backward(Tensor x, Tensor? dactive, Tensor dpooled, str activation) -> Tensor",
      &ncsn_fast::max_pool5_backward);
  m.def("resize_add(Tensor x, Tensor base) -> Tensor", &ncsn_fast::resize_add);
  m.def(
      "resize_add_backward(Tensor grad, int height, int width) -> Tensor",
      &ncsn_fast::resize_add_backward);
}
