// mpi_router_rows and its stateful form.
#include "rows_call.hpp"

#include <mpi_router/router/router_rows.hpp>

#include <array>
#include <utility>

namespace mpi_router_c {
namespace {

/// The numbers that a caller wants, in the type of the sums, and back to double.
template <Accumulator S>
class wanted_numbers {
 public:
  wanted_numbers(const mpi_router_by_products& told, index_t n)
      : wanted_{told.rayleigh, told.cosine, told.residual, told.energy, told.row_norm, told.image_norm},
        n_(n) {
    index_t count = 0;
    for (const double* numbers : wanted_) {
      count += numbers != nullptr ? n : 0;
    }
    memory_.reset(new S[static_cast<std::size_t>(count)]);
  }
  [[nodiscard]] router_by_products<S> view(std::uint8_t* statuses) {
    std::array<vector_view<S>, 6> views{};
    S* at = memory_.get();
    for (std::size_t i = 0; i < wanted_.size(); ++i) {
      if (wanted_[i] != nullptr) {
        views[i] = {std::exchange(at, at + n_), n_};
      }
    }
    return {.statuses = {reinterpret_cast<status*>(statuses),
                         statuses != nullptr ? static_cast<std::size_t>(n_) : 0},
            .rayleigh = views[0],
            .cosine = views[1],
            .tape = {},
            .residual = views[2],
            .energy = views[3],
            .row_norm = views[4],
            .image_norm = views[5]};
  }
  void store() const {
    const S* at = memory_.get();
    for (double* numbers : wanted_) {
      for (index_t i = 0; numbers != nullptr && i < n_; ++i) {
        numbers[i] = static_cast<double>(*at++);
      }
    }
  }

 private:
  std::array<double*, 6> wanted_;
  index_t n_;
  std::unique_ptr<S[]> memory_;
};

struct forward_arguments {
  const char* what;
  const mpi_router_experts& experts;
  const mpi_router_matrix& router;
  const mpi_router_matrix& rows;  // the router, where the step is stateful
  const router_options options;
  const mpi_router_by_products told;
  const mpi_router_buffer* tape;
  std::int64_t tape_size;
  const callback_executor run;
  const bool is_stateful;
};

void check_memory(const forward_arguments& a) {
  const index_t n = a.experts.shape[0];
  memory_of_call memory(a.what);
  memory.reads("experts", a.experts);
  if (!a.is_stateful) {
    memory.reads("router", range_of(a.router));
  }
  memory.writes(a.is_stateful ? "router" : "rows", a.rows);
  memory.writes("statuses", range_of(a.told.statuses, n));
  memory.writes("rayleigh", range_of(a.told.rayleigh, n));
  memory.writes("cosine", range_of(a.told.cosine, n));
  memory.writes("residual", range_of(a.told.residual, n));
  memory.writes("energy", range_of(a.told.energy, n));
  memory.writes("row_norm", range_of(a.told.row_norm, n));
  memory.writes("image_norm", range_of(a.told.image_norm, n));
  if (a.tape != nullptr) {
    memory.writes("tape", range_of(static_cast<const char*>(a.tape->data), a.tape_size));
  }
}

template <Accumulator S>
void step(const rows_functions<S>& functions, const forward_arguments& a) {
  using matrix = matrix_in_sums<S>;
  const matrix router(a.router, a.is_stateful ? matrix::use::update : matrix::use::read);
  const matrix rows(a.rows, matrix::use::write);
  const scratch<S> workspace(router_rows_workspace(shape_of(a.experts)));
  wanted_numbers<S> numbers(a.told, a.experts.shape[0]);
  router_by_products<S> told = numbers.view(a.told.statuses);
  if (a.tape != nullptr) {
    told.tape = view_of<S>(*a.tape, a.tape_size);
  }
  const matrix& out = a.is_stateful ? router : rows;
  (a.is_stateful ? functions.stateful : functions.forward)(
      {a.experts, router.view(), out.view(), a.options, workspace.view(), told, a.run});
  out.store();
  numbers.store();
}

void run(const forward_arguments& a) {
  check(a.what, "experts", a.experts);
  check_rows(a.what, "router", a.router, a.experts);
  check_rows(a.what, "rows", a.rows, a.experts);
  if (a.tape != nullptr) {
    check_buffer(a.what, "tape", *a.tape, a.tape_size);
  }
  static_cast<void>(tape_bytes(a.what, a.experts, a.options));  // steps that no memory could hold
  check_memory(a);
  if (a.experts.shape[0] == 0) {
    return;
  }
  with_rows_of(a.experts.dtype, [&](const auto& functions) { step(functions, a); });
}

}  // namespace
}  // namespace mpi_router_c

using namespace mpi_router_c;

extern "C" {

mpi_router_code mpi_router_rows(const mpi_router_experts* experts, const mpi_router_matrix* router,
                                const mpi_router_options* options, const mpi_router_matrix* rows,
                                const mpi_router_by_products* told, const mpi_router_buffer* tape,
                                const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_rows";
    check(what, "experts", given(what, "experts", experts));
    const router_options o = options_of(what, options);
    run({what, *experts, given(what, "router", router), given(what, "rows", rows), o,
         told != nullptr ? *told : mpi_router_by_products{}, tape,
         tape != nullptr ? tape_bytes(what, *experts, o) : 0, callback_executor(threads), false});
  });
}

mpi_router_code mpi_router_stateful_rows(const mpi_router_experts* experts, const mpi_router_matrix* router,
                                         const mpi_router_options* options,
                                         const mpi_router_by_products* told,
                                         const mpi_router_threads* threads) {
  return guarded([&] {
    constexpr const char* what = "mpi_router_stateful_rows";
    const mpi_router_matrix& state = given(what, "router", router);
    run({what, given(what, "experts", experts), state, state, options_of(what, options),
         told != nullptr ? *told : mpi_router_by_products{}, nullptr, 0, callback_executor(threads), true});
  });
}

}  // extern "C"
