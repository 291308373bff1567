// The kernels as PyTorch operations torch.ops.ncsn_fast_cpp.*: noise, sampling and loss.
//
// Arguments are those of the functions in ncsn_fast/ops, which check them: what is refused here
// is what a kernel would misread.
#include "bindings.h"

#include <ATen/Version.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <atomic>

namespace ncsn_fast {
namespace {

// What this CPU has, as far as PyTorch may use it: ATEN_CPU_CAPABILITY holds here too.
const Table* best() {
#if defined(__x86_64__)
  const std::string allowed = at::get_cpu_capability();
  if (allowed == "DEFAULT") return &plain::table;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool wide = allowed != "AVX2" && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
    return wide ? &avx512::table : &avx2::table;
  }
#endif
  return &plain::table;
}

std::atomic<const Table*> chosen{best()};

// All that this CPU can run, the best first.
std::vector<const Table*> runnable() {
  std::vector<const Table*> tables;
#if defined(__x86_64__)
  if (best() == &avx512::table) tables.push_back(&avx512::table);
  if (best() != &plain::table) tables.push_back(&avx2::table);
#endif
  tables.push_back(&plain::table);
  return tables;
}

}  // namespace

const Table& table() { return *chosen.load(std::memory_order_relaxed); }

Activation activation_of(std::string_view name) {
  constexpr std::string_view names[] = {"", "elu", "relu", "lrelu", "swish"};
  for (int i = 0; i < 5; ++i) {
    if (name == names[i]) return static_cast<Activation>(i);
  }
  TORCH_CHECK_VALUE(false, "activation '", name, "' is unknown");
}

bool is_last(const Tensor& tensor) {
  return tensor.dim() == 4 && !tensor.is_contiguous() &&
         tensor.is_contiguous(at::MemoryFormat::ChannelsLast);
}

Tensor dense(const Tensor& tensor) { return is_last(tensor) ? tensor : tensor.contiguous(); }

Tensor dense_like(const Tensor& tensor, const Tensor& like) {
  return tensor.contiguous(
      is_last(like) ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
}

Tensor empty_like(const Tensor& tensor) { return at::empty_like(tensor); }

Array array_of(const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  TORCH_CHECK_VALUE(
      type == at::kFloat || type == at::kBFloat16,
      "native kernels take float32 and bfloat16, not ", type);
  TORCH_CHECK_VALUE(
      is_last(tensor) || tensor.is_contiguous(), "native kernels take dense tensors, not strides ",
      tensor.strides());
  return {tensor.data_ptr(), type == at::kBFloat16, is_last(tensor)};
}

Array array_of(const OptionalTensor& tensor) { return tensor ? array_of(*tensor) : Array{}; }

Shape shape_of(const Tensor& tensor) {
  if (tensor.dim() == 4) return images_of(tensor);
  TORCH_CHECK_VALUE(tensor.dim() >= 2, "a batch is (N, *shape), not ", tensor.sizes());
  const int64_t samples = tensor.size(0);
  return {samples, 1, 1, samples ? tensor.numel() / samples : 0};
}

Shape images_of(const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.dim() == 4, "images are (N, C, H, W), not ", tensor.sizes());
  return {tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)};
}

const float* floats_of(const Tensor& tensor) {
  TORCH_CHECK_VALUE(
      tensor.scalar_type() == at::kFloat && tensor.is_contiguous(),
      "needed is a contiguous float32 tensor, not ", tensor.scalar_type(), " with strides ",
      tensor.strides());
  return tensor.const_data_ptr<float>();
}

const float* floats_of(const OptionalTensor& tensor) {
  return tensor ? floats_of(*tensor) : nullptr;
}

Noise noise_of(
    const Tensor& seed, const Tensor& step, const Tensor& sample_ids, int64_t stream,
    const Shape& shape) {
  TORCH_CHECK_VALUE(
      seed.numel() == 1 && step.numel() == 1 && sample_ids.numel() == shape.samples &&
          sample_ids.is_contiguous(),
      "noise takes one seed, one step and an id for each sample");
  return {
      static_cast<uint64_t>(*seed.const_data_ptr<int64_t>()),
      static_cast<uint32_t>(*step.const_data_ptr<int64_t>()),
      static_cast<uint32_t>(stream),
      sample_ids.const_data_ptr<int64_t>(),
      shape.elements()};
}

namespace {

constexpr int64_t SAMPLER = 1, KNOWN = 2, PERTURB = 3;  // the streams of ncsn_fast/noise.py

int64_t tiles(int64_t total) { return (total + TILE - 1) / TILE; }

// Chooses what compiled code runs, "" for the best; returns what runs, and all that can.
std::vector<std::string> capability(c10::string_view wanted) {
  std::vector<std::string> names;
  const Table* found = wanted.empty() ? best() : nullptr;
  for (const Table* one : runnable()) {
    names.emplace_back(one->name);
    if (names.back() == std::string_view(wanted.data(), wanted.size())) found = one;
  }
  TORCH_CHECK_VALUE(found, "this CPU cannot run '", wanted, "'; it can run ", names);
  chosen = found;
  names.insert(names.begin(), found->name);
  return names;
}

// Philox's words, (B, 4) int64 in [0, 2³²), for counters of that shape.
Tensor words(int64_t seed, const Tensor& counters) {
  const Tensor from = counters.contiguous();
  Tensor to = at::empty_like(from);
  const auto count = static_cast<size_t>(from.numel());
  const auto* given = from.const_data_ptr<int64_t>();
  std::vector<uint32_t> in(given, given + count), out(count);
  table().words(static_cast<uint64_t>(seed), in.data(), out.data(), from.size(0));
  std::copy(out.begin(), out.end(), to.mutable_data_ptr<int64_t>());
  return to;
}

using Draw = void (*)(const Noise&, float* out, int64_t first, int64_t count);

// What a kernel draws for all samples in each of these steps, of the shape `sizes` in all.
Tensor drawn(
    Draw draw, const Tensor& sample_ids, at::IntArrayRef sizes, int64_t seed,
    at::IntArrayRef steps, int64_t stream) {
  Tensor out = at::empty(sizes, at::kFloat);
  if (out.numel() == 0) return out;
  const Tensor ids = sample_ids.contiguous();
  const auto count = static_cast<int64_t>(steps.size());
  TORCH_CHECK_VALUE(
      ids.numel() * count > 0 && out.numel() % (ids.numel() * count) == 0, "a draw of ", sizes,
      " is not one for each of ", count, " steps and ", ids.numel(), " samples");
  const int64_t total = out.numel() / count;
  float* to = out.mutable_data_ptr<float>();
  for (const int64_t step : steps) {
    const Noise noise = {
        static_cast<uint64_t>(seed), static_cast<uint32_t>(step), static_cast<uint32_t>(stream),
        ids.const_data_ptr<int64_t>(), total / ids.numel()};
    in_parallel(tiles(total), TILE, HEAVY, [&](int64_t first, int64_t last) {
      draw(noise, to, first * TILE, std::min(last * TILE, total) - first * TILE);
    });
    to += total;
  }
  return out;
}

Tensor normal(
    const Tensor& sample_ids, at::IntArrayRef sizes, int64_t seed, at::IntArrayRef steps,
    int64_t stream) {
  return drawn(table().normal, sample_ids, sizes, seed, steps, stream);
}

Tensor uniform(
    const Tensor& sample_ids, at::IntArrayRef sizes, int64_t seed, at::IntArrayRef steps,
    int64_t stream) {
  return drawn(table().uniform, sample_ids, sizes, seed, steps, stream);
}

void sampler_update(
    const Tensor& x, const Tensor& n, const Tensor& row, const Tensor& seed, const Tensor& step,
    const Tensor& sample_ids, const OptionalTensor& z, const OptionalTensor& history,
    const OptionalTensor& guidance, const OptionalTensor& mask, const OptionalTensor& known,
    bool add_noise, const Tensor& x_out, const OptionalTensor& history_out,
    const OptionalTensor& input_out) {
  Update u{};
  u.shape = shape_of(x);
  if (u.shape.total() == 0) return;
  const Tensor output = dense(n);
  u.noise = u.known_noise = noise_of(seed, step, sample_ids, SAMPLER, u.shape);
  u.known_noise.stream = KNOWN;
  u.known_noise.step += 1;
  u.add_noise = add_noise;
  const float* of_row = floats_of(row);
  float* into[] = {&u.a, &u.b, &u.c, &u.d, &u.e, &u.f, &u.w, &u.next_c_in, &u.next_sigma};
  for (float* coefficient : into) *coefficient = *of_row++;
  u.x = floats_of(x);
  u.z = floats_of(z);
  u.history = floats_of(history);
  u.guidance = floats_of(guidance);
  u.known = floats_of(known);
  u.mask = mask ? mask->const_data_ptr<bool>() : nullptr;
  u.n = array_of(output);
  u.x_out = const_cast<float*>(floats_of(x_out));
  u.history_out = const_cast<float*>(floats_of(history_out));
  u.input_out = const_cast<float*>(floats_of(input_out));
  const Table& kernels = table();
  const int64_t grain = (add_noise && !z) || mask ? HEAVY : LIGHT;
  in_parallel(tiles(u.shape.total()), TILE, grain, [&](int64_t first, int64_t last) {
    kernels.sampler_update(u, first, last);
  });
}

void perturb(
    const Tensor& x, const Tensor& sigma, const Tensor& seed, const Tensor& step,
    const Tensor& sample_ids, const Tensor& out) {
  const Shape shape = shape_of(x);
  if (shape.total() == 0) return;
  const Noise noise = noise_of(seed, step, sample_ids, PERTURB, shape);
  auto* to = const_cast<float*>(floats_of(out));
  const Perturb p = {shape, noise, floats_of(x), floats_of(sigma), to};
  const Table& kernels = table();
  in_parallel(tiles(shape.total()), TILE, HEAVY, [&](int64_t first, int64_t last) {
    kernels.perturb(p, first, last);
  });
}

// Writes the losses, the gradients, or both.
void dsm_loss(
    const Tensor& n, const OptionalTensor& weight, const Tensor& seed, const Tensor& step,
    const Tensor& sample_ids, const OptionalTensor& upstream, const OptionalTensor& loss,
    const OptionalTensor& gradient) {
  Loss l{};
  l.shape = shape_of(n);
  if (l.shape.total() == 0) return;
  l.noise = noise_of(seed, step, sample_ids, PERTURB, l.shape);
  l.n = array_of(n);
  l.weight = floats_of(weight);
  l.upstream = floats_of(upstream);
  l.gradient = array_of(gradient);
  const int64_t chunks = l.chunks_of_sample();
  std::vector<double> partial(loss ? static_cast<size_t>(l.shape.samples * chunks) : 0);
  l.partial = loss ? partial.data() : nullptr;
  const Table& kernels = table();
  in_parallel(l.items(), l.shape.total() / l.items(), HEAVY, [&](int64_t first, int64_t last) {
    kernels.dsm_loss(l, first, last);
  });
  if (!loss) return;
  auto* to = const_cast<float*>(floats_of(*loss));
  for (int64_t sample = 0; sample < l.shape.samples; ++sample) {
    double sum = 0.0;
    for (int64_t i = 0; i < chunks; ++i) sum += partial[static_cast<size_t>(sample * chunks + i)];
    to[sample] = static_cast<float>(sum);
  }
}

// A fingerprint of each tensor's values, type, shape and strides.
std::vector<int64_t> fingerprints(at::TensorList tensors) {
  constexpr int64_t PIECE = 16384;  // bytes that a thread takes at once
  struct Piece {
    const unsigned char* bytes;
    int64_t count;
    size_t tensor;
    uint64_t state;
  };
  std::vector<Piece> pieces;
  std::vector<Tensor> kept;  // until they have been read
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor tensor = tensors[i].resolve_neg();
    if (!tensor.is_non_overlapping_and_dense()) tensor = tensor.contiguous();
    kept.push_back(tensor);
    const auto* bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
    const auto total = static_cast<int64_t>(tensor.nbytes());
    for (int64_t done = 0; done < total; done += PIECE) {
      pieces.push_back({bytes + done, std::min(PIECE, total - done), i, 0});
    }
  }
  const Table& kernels = table();
  in_parallel(static_cast<int64_t>(pieces.size()), PIECE / 4, LIGHT, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      Piece& piece = pieces[static_cast<size_t>(i)];
      piece.state = kernels.fingerprint(piece.bytes, piece.count, 0);
    }
  });
  std::vector<int64_t> found;
  auto piece = pieces.begin();
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::vector<uint64_t> all{static_cast<uint64_t>(tensors[i].scalar_type())};
    for (const int64_t size : tensors[i].sizes()) all.push_back(static_cast<uint64_t>(size));
    for (const int64_t stride : tensors[i].strides()) all.push_back(static_cast<uint64_t>(stride));
    for (; piece != pieces.end() && piece->tensor == i; ++piece) all.push_back(piece->state);
    const auto* bytes = reinterpret_cast<const unsigned char*>(all.data());
    const auto count = static_cast<int64_t>(all.size() * sizeof all[0]);
    found.push_back(static_cast<int64_t>(kernels.fingerprint(bytes, count, all.size())));
  }
  return found;
}

}  // namespace
}  // namespace ncsn_fast

TORCH_LIBRARY(ncsn_fast_cpp, m) {
  m.def("capability(str wanted) -> str[]", &ncsn_fast::capability);
  m.def("words(int seed, Tensor counters) -> Tensor", &ncsn_fast::words);
  m.def(
      "normal(Tensor sample_ids, int[] sizes, int seed, int[] steps, int stream) -> Tensor",
      &ncsn_fast::normal);
  m.def(
      "uniform(Tensor sample_ids, int[] sizes, int seed, int[] steps, int stream) -> Tensor",
      &ncsn_fast::uniform);
  m.def(
      "sampler_update(Tensor x, Tensor n, Tensor row, Tensor seed, Tensor step, "
      "Tensor sample_ids, Tensor? z, Tensor? history, Tensor? guidance, Tensor? mask, "
      "Tensor? known, bool add_noise, Tensor(a!) x_out, Tensor(b!)? history_out, "
      "Tensor(c!)? input_out) -> ()",
      &ncsn_fast::sampler_update);
  m.def(
      "perturb(Tensor x, Tensor sigma, Tensor seed, Tensor step, Tensor sample_ids, "
      "Tensor(a!) out) -> ()",
      &ncsn_fast::perturb);
  m.def(
      "dsm_loss(Tensor n, Tensor? weight, Tensor seed, Tensor step, Tensor sample_ids, "
      "Tensor? upstream, Tensor(a!)? loss, Tensor(b!)? gradient) -> ()",
      &ncsn_fast::dsm_loss);
  m.def("fingerprints(Tensor[] tensors) -> int[]", &ncsn_fast::fingerprints);
}
