// The calls on GPUs where there is none: in a library that was built without CUDA they say so, in one with it
// every mistake is found before CUDA is called. A GPU that there may be is hidden.
#include <doctest/doctest.h>

#include <mpi_router/c/mpi_router.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

const int hidden_devices = setenv("CUDA_VISIBLE_DEVICES", "", 1);

mpi_router_cuda no_device() {
  mpi_router_cuda cuda{};
  cuda.multiprocessors = 132;
  cuda.capability = 90;
  cuda.shared_memory = 227 * 1024;
  const std::int32_t clusters[4] = {132, 66, 32, 16};
  std::memcpy(cuda.clusters, clusters, sizeof clusters);
  return cuda;
}

bool is_built_with_cuda() { return mpi_router_cuda_of_current_device(nullptr) == MPIROUTER_INVALID_ARGUMENT; }

/// An address that nothing is read from, with a mebibyte of its own.
void* buffer(int number) {
  return reinterpret_cast<void*>(std::uintptr_t{0x10000000} + static_cast<std::uintptr_t>(number) * 0x100000);
}

mpi_router_experts device_experts(int number, mpi_router_dtype dtype) {
  auto e = mpi_router_experts_nfd(buffer(number), dtype, 2, 3, 4);
  e.device = MPIROUTER_CUDA;
  return e;
}
mpi_router_matrix device_matrix(int number, std::int64_t rows, std::int64_t cols) {
  auto m = mpi_router_row_major(buffer(number), MPIROUTER_F32, rows, cols);
  m.device = MPIROUTER_CUDA;
  return m;
}

/// Calls that are well except for the GPU, until something in them is changed.
struct working_on_gpu {
  mpi_router_cuda cuda = no_device();
  mpi_router_experts experts = device_experts(0, MPIROUTER_F32),
                     to_experts = device_experts(1, MPIROUTER_F32);
  mpi_router_matrix in = device_matrix(2, 2, 4), out = device_matrix(3, 2, 4),
                    to_router = device_matrix(4, 2, 4);
  mpi_router_options options = mpi_router_default_options();
  mpi_router_by_products told{};
  mpi_router_buffer tape{buffer(5), 1000}, factors{buffer(6), 1000};
  std::int32_t mode = MPIROUTER_WRITE;
  mpi_router_matrix logits = device_matrix(8, 5, 3), weights = device_matrix(9, 5, 2);
  mpi_router_vector bias{buffer(10), MPIROUTER_F32, MPIROUTER_CUDA, 3, 1};
  mpi_router_gating_options gating = mpi_router_default_gating_options(2);
  std::int32_t* ids = static_cast<std::int32_t*>(buffer(11));
  mpi_router_matrix grads = device_matrix(12, 6, 3), tokens = device_matrix(13, 6, 4);
  const std::int32_t* offsets = static_cast<const std::int32_t*>(buffer(14));

  working_on_gpu() { cuda.workspace = {buffer(7), 1 << 20}; }
  mpi_router_code forward() {
    return mpi_router_cuda_rows(&cuda, &experts, &in, &options, &out, &told, &tape);
  }
  mpi_router_code stateful() { return mpi_router_cuda_stateful_rows(&cuda, &experts, &in, &options, &told); }
  mpi_router_code backward() {
    return mpi_router_cuda_rows_vjp(&cuda, &experts, &in, &options, &tape, &out, &to_router, &to_experts,
                                    mode);
  }
  mpi_router_code detached() {
    return mpi_router_cuda_rows_vjp_detached(&cuda, &experts, &in, &options, &tape, &out, &to_router);
  }
  mpi_router_code factored() {
    return mpi_router_cuda_rows_vjp_factored(&cuda, &experts, &in, &options, &tape, &out, &to_router,
                                             &factors);
  }
  mpi_router_code put() {
    return mpi_router_cuda_put_factors(&cuda, &grads, &tokens, offsets, &in, &factors);
  }
  mpi_router_code restore() { return mpi_router_cuda_restore_padding(&cuda, &grads, &tokens, offsets, 2); }
  mpi_router_code gate() {
    return mpi_router_cuda_gate(&cuda, &logits, &gating, &bias, nullptr, &weights, ids, nullptr, nullptr);
  }
};

void says_of_gpu(const char* part) {
  CAPTURE(mpi_router_last_error());
  CAPTURE(part);
  CHECK(std::strstr(mpi_router_last_error(), part) != nullptr);
}

constexpr mpi_router_code invalid = MPIROUTER_INVALID_ARGUMENT, unsupported = MPIROUTER_UNSUPPORTED;

template <class Change>
void refused(mpi_router_code (working_on_gpu::*call)(), mpi_router_code code, const char* text,
             const Change& change) {
  working_on_gpu w;
  change(w);
  CAPTURE(text);
  CHECK((w.*call)() == code);
  says_of_gpu(text);
}

}  // namespace

TEST_CASE("without CUDA every call says so") {
  if (is_built_with_cuda()) {
    return;
  }
  working_on_gpu w;
  std::int64_t bytes = 7;
  const auto is_refused = [&](mpi_router_code code, const char* name) {
    CHECK(code == unsupported);
    says_of_gpu((std::string("mpi_router: ") + name + ": this library was built without CUDA").c_str());
  };
  is_refused(mpi_router_cuda_of_current_device(&w.cuda), "mpi_router_cuda_of_current_device");
  is_refused(mpi_router_cuda_rows_workspace_size(&w.cuda, &w.experts, nullptr, &bytes),
             "mpi_router_cuda_rows_workspace_size");
  is_refused(mpi_router_cuda_rows_vjp_workspace_size(&w.cuda, &w.experts, nullptr, 0, &bytes),
             "mpi_router_cuda_rows_vjp_workspace_size");
  is_refused(w.forward(), "mpi_router_cuda_rows");
  is_refused(w.stateful(), "mpi_router_cuda_stateful_rows");
  is_refused(w.backward(), "mpi_router_cuda_rows_vjp");
  is_refused(w.detached(), "mpi_router_cuda_rows_vjp_detached");
  is_refused(w.factored(), "mpi_router_cuda_rows_vjp_factored");
  is_refused(w.put(), "mpi_router_cuda_put_factors");
  is_refused(w.restore(), "mpi_router_cuda_restore_padding");
  is_refused(w.gate(), "mpi_router_cuda_gate");
  CHECK(bytes == 7);
}

TEST_CASE("functions of the host name the one for GPUs") {
  working_on_gpu w;
  const auto is_refused = [&](mpi_router_code code, const char* text) {
    CHECK(code == unsupported);
    says_of_gpu(text);
    const bool is_silent =
        std::strstr(mpi_router_last_error(), "(this library was built without CUDA)") == nullptr;
    CHECK(is_silent == is_built_with_cuda());  // which fails a call itself
  };
  is_refused(mpi_router_rows(&w.experts, &w.in, nullptr, &w.out, nullptr, nullptr, nullptr),
             "mpi_router_rows: experts is on a GPU, and this call takes memory of the host: call "
             "mpi_router_cuda_rows, with all of it there");
  w.experts.device = MPIROUTER_HOST;  // one of them alone
  is_refused(mpi_router_rows(&w.experts, &w.in, nullptr, &w.out, nullptr, nullptr, nullptr),
             "mpi_router_rows: router is on a GPU");
  float stored[24] = {};
  double numbers[100] = {};
  const mpi_router_buffer tape{numbers, sizeof numbers};
  auto experts = mpi_router_experts_nfd(stored, MPIROUTER_F32, 2, 3, 4);
  auto host = mpi_router_row_major(stored, MPIROUTER_F32, 2, 4);
  is_refused(mpi_router_rows_vjp_detached(&experts, &host, nullptr, &tape, &host, &w.to_router, 0, nullptr),
             "grad_router is on a GPU, and this call takes memory of the host: call "
             "mpi_router_cuda_rows_vjp_detached");
  is_refused(mpi_router_gate(&w.logits, &w.gating, nullptr, nullptr, &w.weights, w.ids, nullptr, nullptr),
             "logits is on a GPU, and this call takes memory of the host: call mpi_router_cuda_gate");
  is_refused(
      mpi_router_gate_vjp(&w.logits, &w.gating, nullptr, w.ids, nullptr, &w.weights, &w.logits, 0, nullptr),
      "mpi_router_gate_vjp: logits is on a GPU, and this call takes memory of the host");
  CHECK(mpi_router_gate_vjp(&w.logits, &w.gating, nullptr, w.ids, nullptr, &w.weights, &w.logits, 0,
                            nullptr) == unsupported);
  CHECK(std::strstr(mpi_router_last_error(), "call mpi") == nullptr);  // there is none
}

TEST_CASE("a call without a mistake reaches CUDA, which finds no device") {
  if (!is_built_with_cuda()) {
    return;
  }
  for (const auto call : {&working_on_gpu::forward, &working_on_gpu::stateful, &working_on_gpu::backward,
                          &working_on_gpu::detached, &working_on_gpu::factored, &working_on_gpu::gate,
                          &working_on_gpu::put, &working_on_gpu::restore}) {
    refused(call, MPIROUTER_DEVICE_ERROR, "mpi_router: cudaGetDevice: ", [](working_on_gpu&) {});
  }
  mpi_router_cuda cuda{};
  CHECK(mpi_router_cuda_of_current_device(&cuda) == MPIROUTER_DEVICE_ERROR);
  CHECK(std::string(mpi_router_code_name(MPIROUTER_DEVICE_ERROR)) == "device_error");
}

TEST_CASE("mistakes on a GPU, of any call") {
  if (!is_built_with_cuda()) {
    return;
  }
  using W = working_on_gpu;
  for (const auto call : {&W::forward, &W::stateful, &W::backward, &W::detached, &W::factored}) {
    refused(call, invalid, "cuda was not filled in", [](W& x) { x.cuda.multiprocessors = 0; });
    refused(call, unsupported, "cuda is of a device of sm_75", [](W& x) { x.cuda.capability = 75; });
    refused(call, invalid, "inputs_at_rest is 2", [](W& x) { x.cuda.inputs_at_rest = 2; });
    refused(call, invalid, "workspace has -1 bytes", [](W& x) { x.cuda.workspace.bytes = -1; });
    refused(call, unsupported,
            "experts is on the host, and this call takes memory on a GPU: call mpi_router_",
            [](W& x) { x.experts.device = MPIROUTER_HOST; });
    refused(call, unsupported, "router is on the host", [](W& x) { x.in.device = MPIROUTER_HOST; });
    refused(call, invalid, "experts has the device 2", [](W& x) { x.experts.device = 2; });
    refused(call, invalid, "experts has the dtype 0", [](W& x) { x.experts.dtype = 0; });
    refused(call, invalid, "experts of shape [2, 3, 4] has null data",
            [](W& x) { x.experts.data = nullptr; });
    refused(call, invalid, "experts is not aligned to its type, f32",
            [](W& x) { x.experts.data = static_cast<char*>(x.experts.data) + 2; });
    refused(call, unsupported, "router is f64, and the sums are taken in f32",
            [](W& x) { x.in.dtype = MPIROUTER_F64; });
    refused(call, invalid, "router is [2, 3], not [2, 4], as the experts [N = 2, F = 3, D = 4] ask",
            [](W& x) { x.in.shape[1] = 3; });
    refused(call, invalid, "the radius must be positive", [](W& x) { x.options.radius = 0; });
    refused(call, invalid, "a workspace of 3 bytes where ", [](W& x) { x.cuda.workspace.bytes = 3; });
    refused(call, invalid, "null workspace", [](W& x) { x.cuda.workspace.data = nullptr; });
    refused(call, invalid, "the workspace is not aligned to 256",
            [](W& x) { x.cuda.workspace.data = static_cast<char*>(x.cuda.workspace.data) + 16; });
    refused(call, invalid, "overlap", [](W& x) { x.cuda.workspace.data = x.experts.data; });
    refused(call, invalid, "where D may be up to 32768", [](W& x) {
      for (auto* m : {&x.in, &x.out, &x.to_router}) *m = device_matrix(20, 2, 40000);
      for (auto* e : {&x.experts, &x.to_experts}) {
        *e = mpi_router_experts_nfd(buffer(30), MPIROUTER_F32, 2, 3, 40000);
        e->device = MPIROUTER_CUDA;
      }
      x.out.data = buffer(21);
      x.tape = {buffer(40), 1 << 20};
      x.factors = {buffer(41), 1 << 20};
    });
  }
}

TEST_CASE("mistakes of a forward on a GPU") {
  if (!is_built_with_cuda()) {
    return;
  }
  using W = working_on_gpu;
  const auto forward = [](mpi_router_code code, const char* text, auto change) {
    refused(&W::forward, code, text, change);
  };
  forward(invalid, "rows is written, and with the strides [0, 1]", [](W& x) { x.out.strides[0] = 0; });
  forward(invalid, "overlap", [](W& x) { x.out.data = static_cast<float*>(x.in.data) + 1; });
  forward(invalid, "overlap", [](W& x) { x.told.cosine = static_cast<double*>(x.out.data); });
  forward(invalid, "overlap", [](W& x) { x.tape.data = x.experts.data; });
  forward(invalid, "tape has 49 bytes, not 50", [](W& x) { x.tape.bytes = 49; });
  forward(invalid, "tape is not aligned as a double",
          [](W& x) { x.tape.data = static_cast<char*>(x.tape.data) + 4; });
  forward(unsupported, "steps is 3, and a backward on a GPU, with its tape, is of one step",
          [](W& x) { x.options.steps = 3; });
  forward(invalid, "steps is 0", [](W& x) { x.options.steps = 0; });
  working_on_gpu w;
  CHECK(mpi_router_cuda_rows(&w.cuda, &w.experts, &w.in, &w.options, nullptr, nullptr, nullptr) == invalid);
  says_of_gpu("mpi_router_cuda_rows: rows is null");
  CHECK(mpi_router_cuda_rows(nullptr, &w.experts, &w.in, &w.options, &w.out, nullptr, nullptr) == invalid);
  says_of_gpu("mpi_router_cuda_rows: cuda is null");
  w.experts.shape[0] = w.in.shape[0] = w.out.shape[0] = 0;  // there is nothing to do
  CHECK(w.forward() == MPIROUTER_OK);
}

TEST_CASE("mistakes of a backward on a GPU") {
  if (!is_built_with_cuda()) {
    return;
  }
  using W = working_on_gpu;
  const auto backward = [](mpi_router_code code, const char* text, auto change) {
    refused(&W::backward, code, text, change);
  };
  backward(invalid, "through is none; mpi_router_cuda_rows_vjp_detached takes",
           [](W& x) { x.options.through = MPIROUTER_THROUGH_NONE; });
  backward(invalid, "mode is 2", [](W& x) { x.mode = 2; });
  backward(invalid, "grad_experts is [2, 3, 5], experts is [2, 3, 4]",
           [](W& x) { x.to_experts.shape[2] = 5; });
  backward(unsupported, "grad_experts is bf16 and experts is f32",
           [](W& x) { x.to_experts.dtype = MPIROUTER_BF16; });
  backward(unsupported, "grad_experts is on the host", [](W& x) { x.to_experts.device = MPIROUTER_HOST; });
  backward(invalid, "grad_experts are written, and with the strides [12, 0, 1]",
           [](W& x) { x.to_experts.strides[1] = 0; });
  backward(invalid, "overlap", [](W& x) { x.to_experts.data = x.experts.data; });
  backward(invalid, "overlap", [](W& x) { x.to_router.data = x.in.data; });
  backward(unsupported, "steps is 2, and a backward on a GPU", [](W& x) { x.options.steps = 2; });
  backward(invalid, "tape has 9 bytes", [](W& x) { x.tape.bytes = 9; });
  refused(&W::factored, invalid, "factors has 79 bytes, not 80", [](W& x) { x.factors.bytes = 79; });
  refused(&W::factored, invalid, "overlap", [](W& x) { x.factors.data = x.experts.data; });
  refused(&W::factored, invalid, "there are no factors",
          [](W& x) { x.options.through = MPIROUTER_THROUGH_NONE; });
  refused(&W::detached, MPIROUTER_DEVICE_ERROR, "cudaGetDevice",  // of which `through` says nothing
          [](W& x) { x.options.through = MPIROUTER_THROUGH_NONE; });
  working_on_gpu w;
  CHECK(mpi_router_cuda_rows_vjp_detached(&w.cuda, &w.experts, &w.in, nullptr, &w.tape, &w.out, nullptr) ==
        invalid);
  says_of_gpu("grad_router is null");
  CHECK(mpi_router_cuda_rows_vjp(&w.cuda, &w.experts, &w.in, nullptr, &w.tape, &w.out, nullptr, &w.to_experts,
                                 0) == MPIROUTER_DEVICE_ERROR);  // here it need not be
}

TEST_CASE("mistakes about the padding of a grouped product on a GPU") {
  if (!is_built_with_cuda()) {
    return;
  }
  using W = working_on_gpu;
  for (const auto call : {&W::put, &W::restore}) {
    refused(call, invalid, "cuda was not filled in", [](W& x) { x.cuda.multiprocessors = 0; });
    refused(call, unsupported, "grads is on the host", [](W& x) { x.grads.device = MPIROUTER_HOST; });
    refused(call, invalid, "tokens of shape [6, 4] has null data", [](W& x) { x.tokens.data = nullptr; });
    refused(call, invalid, "grads is bf16, tokens is f32", [](W& x) { x.grads.dtype = MPIROUTER_BF16; });
    refused(call, invalid, "tokens is written, and with the strides [0, 1]",
            [](W& x) { x.tokens.strides[0] = 0; });
    refused(call, invalid, "gradients [5, 3], tokens [6, 4]", [](W& x) { x.grads.shape[0] = 5; });
    refused(call, invalid, "null offsets", [](W& x) { x.offsets = nullptr; });
    refused(call, invalid, "offsets is not aligned to int32_t", [](W& x) {
      x.offsets = reinterpret_cast<const std::int32_t*>(static_cast<char*>(buffer(14)) + 2);
    });
    refused(call, invalid, "a workspace of 111 bytes where 112 are needed",
            [](W& x) { x.cuda.workspace.bytes = 111; });
    refused(call, invalid, "the gradients and the tokens overlap",
            [](W& x) { x.grads.data = static_cast<float*>(x.tokens.data) + 4; });
    refused(call, invalid, "the tokens and the kept padding overlap",
            [](W& x) { x.tokens.data = x.cuda.workspace.data; });
  }
  refused(&W::put, invalid, "router of shape [2, 4] has null data", [](W& x) { x.in.data = nullptr; });
  refused(&W::put, invalid, "the router is [2, 5], 2 experts and tokens [6, 4] ask for [2, 4]",
          [](W& x) { x.in = device_matrix(2, 2, 5); });
  refused(&W::put, invalid, "factors has 79 bytes, where 2 experts of F = 3 and D = 4 ask for 4 N (2 F + D)",
          [](W& x) { x.factors.bytes = 79; });
  refused(&W::put, invalid, "the tokens and the router overlap", [](W& x) { x.in.data = x.tokens.data; });
  refused(&W::put, invalid, "the gradients and w overlap",
          [](W& x) { x.factors.data = static_cast<float*>(x.grads.data) - 14; });
  working_on_gpu w;
  CHECK(mpi_router_cuda_restore_padding(&w.cuda, &w.grads, &w.tokens, w.offsets, -1) == invalid);
  says_of_gpu("-1 experts");
  CHECK(mpi_router_cuda_restore_padding(&w.cuda, &w.grads, &w.tokens, nullptr, 0) == MPIROUTER_OK);
}

TEST_CASE("mistakes of a gate on a GPU") {
  if (!is_built_with_cuda()) {
    return;
  }
  using W = working_on_gpu;
  const auto gate = [](mpi_router_code code, const char* text, auto change) {
    refused(&W::gate, code, text, change);
  };
  gate(invalid, "top_k is 4 for 3 experts", [](W& x) { x.gating.top_k = 4; });
  gate(unsupported, "logits is bf16, and a gate on a GPU takes f32",
       [](W& x) { x.logits.dtype = MPIROUTER_BF16; });
  gate(unsupported, "weights is f64, and a gate on a GPU takes f32",
       [](W& x) { x.weights.dtype = MPIROUTER_F64; });
  gate(unsupported, "logits is on the host, and this call takes memory on a GPU: call mpi_router_gate",
       [](W& x) { x.logits.device = MPIROUTER_HOST; });
  gate(unsupported, "logits has the strides [1, 5]", [](W& x) {
    x.logits.strides[0] = 1;
    x.logits.strides[1] = 5;
  });
  gate(unsupported, "weights has the strides [3, 1]", [](W& x) { x.weights.strides[0] = 3; });
  gate(invalid, "weights is [5, 2], not [5, 1]", [](W& x) { x.gating.top_k = 1; });
  gate(invalid, "selection_bias has 2 elements, logits is 3 experts wide", [](W& x) { x.bias.size = 2; });
  gate(unsupported, "selection_bias has the stride 2", [](W& x) { x.bias.stride = 2; });
  gate(invalid, "experts is null", [](W& x) { x.ids = nullptr; });
  gate(invalid, "experts is not aligned",
       [](W& x) { x.ids = reinterpret_cast<std::int32_t*>(static_cast<char*>(buffer(11)) + 2); });
}

TEST_CASE("sizes of what a GPU works with need no memory, and those of tapes and factors no GPU") {
  working_on_gpu w;
  w.experts.data = w.to_experts.data = nullptr;
  std::int64_t bytes = -1;
  CHECK(mpi_router_tape_size(&w.experts, nullptr, &bytes) == MPIROUTER_OK);
  CHECK(bytes == 2 * (8 + 4 * 4 + 1));
  CHECK(mpi_router_factors_size(&w.experts, nullptr, &bytes) == MPIROUTER_OK);
  CHECK(bytes == 4 * 2 * (3 + 4 + 3));
  if (!is_built_with_cuda()) {
    return;
  }
  CHECK(mpi_router_cuda_rows_workspace_size(&w.cuda, &w.experts, nullptr, &bytes) == MPIROUTER_OK);
  CHECK(bytes > 0);
  w.options.steps = 2;
  std::int64_t more = 0;
  CHECK(mpi_router_cuda_rows_workspace_size(&w.cuda, &w.experts, &w.options, &more) == MPIROUTER_OK);
  CHECK(more > bytes);
  CHECK(mpi_router_cuda_rows_vjp_workspace_size(&w.cuda, &w.experts, &w.to_experts, 1, &bytes) ==
        MPIROUTER_OK);
  CHECK(bytes > 0);
  CHECK(mpi_router_cuda_rows_vjp_workspace_size(&w.cuda, &w.experts, nullptr, 0, &bytes) == MPIROUTER_OK);
  CHECK(bytes > 0);
  CHECK(mpi_router_cuda_rows_vjp_workspace_size(&w.cuda, &w.experts, nullptr, 2, &bytes) == invalid);
  says_of_gpu("mode is 2");
  w.experts.device = MPIROUTER_HOST;
  CHECK(mpi_router_cuda_rows_workspace_size(&w.cuda, &w.experts, nullptr, &bytes) == unsupported);
  says_of_gpu("experts is on the host, and this call takes memory on a GPU");
  CHECK(mpi_router_cuda_rows_workspace_size(&w.cuda, nullptr, nullptr, &bytes) == invalid);
  says_of_gpu("experts is null");
}
