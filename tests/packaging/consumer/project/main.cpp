// What a user's first program does: one step, checked against a matrix whose answer is known.
#include <mpi_router/mpi_router.hpp>

#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>

#ifdef WITH_eigen
#include <mpi_router/backend/eigen.hpp>

#include <Eigen/Dense>
#endif
#ifdef EXPECT_EIGEN
static_assert(EIGEN_MAJOR_VERSION == EXPECT_EIGEN);
#endif
#ifdef WITH_dispatch
#include <mpi_router/backend/runtime_dispatch.hpp>

#include <vector>
#endif
#ifdef WITH_c
#include <mpi_router/c/mpi_router.h>
#endif
#ifdef WITH_io
#include <nlohmann/json.hpp>
#endif
#ifdef WITH_simd
#include <xsimd/xsimd.hpp>
#endif
#ifdef WITH_distributed
#include <mpi_router/distributed/loopback.hpp>
#include <mpi_router/distributed/sharded_rows.hpp>

#include <vector>
#endif
#ifdef WITH_mpi
#include <mpi_router/distributed/mpi.hpp>
#endif
#ifdef WITH_ggml
#include <mpi_router/ggml/router_rows.hpp>
#endif
#ifdef WITH_tbb
#include <tbb/parallel_for.h>
#endif
#ifdef WITH_openmp
#ifndef _OPENMP
#error "mpi_router::openmp does not switch OpenMP on"
#endif
#endif

// A = diag(2, 1): from (1, 1), rM = (4, 1).
int main() {
  const std::array<double, 4> a{2, 0, 0, 1};
  const std::array<double, 2> row{1, 1};
  std::array<double, 2> out{};
  const auto op = mpi_router::gram(mpi_router::gate_fd(a.data(), 2, 2));
  const auto step = mpi_router::power_step(op, row, out, 1.0);
  const double norm = std::sqrt(17.0);
  bool good = step.state == mpi_router::status::ok && std::abs(out[0] - 4 / norm) < 1e-15 &&
              std::abs(out[1] - 1 / norm) < 1e-15;

#ifdef WITH_eigen
  const Eigen::MatrixXd matrix = Eigen::Vector2d(2, 1).asDiagonal();
  const Eigen::VectorXd start = Eigen::Vector2d(1, 1);
  Eigen::VectorXd image_of_start(2);
  mpi_router::power_step(mpi_router::gram(matrix), mpi_router::view(start), mpi_router::view(image_of_start),
                         1.0);
  good = good && (image_of_start - Eigen::Vector2d(4, 1) / norm).norm() < 1e-15;
#endif
#ifdef WITH_dispatch
  // Long enough for a kernel: A = 2 on the diagonal, M = 4.
  constexpr mpi_router::index_t size = 64;
  std::vector<float> wide(size * size);
  for (std::size_t i = 0; i < size; ++i) wide[i * (size + 1)] = 2;
  const std::vector<float> ones(size, 1);
  std::vector<float> image(size);
  const auto fast = mpi_router::gram(mpi_router::gate_fd(wide.data(), size, size), mpi_router::dispatch{});
  good = good && fast.apply(ones, image) == 4.0F * size && image[0] == 4 && image[size - 1] == 4;
#endif
#ifdef WITH_c
  std::array<double, 2> by_c{};
  const auto experts = mpi_router_experts_nfd(a.data(), MPIROUTER_F64, 1, 2, 2);
  const auto router = mpi_router_row_major(row.data(), MPIROUTER_F64, 1, 2);
  const auto rows_by_c = mpi_router_row_major(by_c.data(), MPIROUTER_F64, 1, 2);
  good = good &&
         mpi_router_rows(&experts, &router, nullptr, &rows_by_c, nullptr, nullptr, nullptr) == MPIROUTER_OK;
  good = good && std::abs(by_c[0] - 16 / norm) < 1e-14;  // C = 4
#endif
#ifdef WITH_distributed
  // The two neurons on two threads.
  mpi_router::run_ranks(2, [&](const mpi_router::loopback_communicator& comm) {
    const auto mine = mpi_router::experts_nfd(a.data() + 2 * comm.rank(), {1, 1, 2});
    std::array<double, 2> rows{};
    const mpi_router::sharded_layer layer{mpi_router::shard_of_neurons(mine, comm.rank(), 2),
                                          mpi_router::row_major(row.data(), 1, 2),
                                          mpi_router::row_major(rows.data(), 1, 2)};
    std::vector<double> workspace(
        static_cast<std::size_t>(mpi_router::sharded_router_rows_workspace(layer, 2)));
    mpi_router::sharded_router_rows(comm, layer, {.radius = 1}, workspace);
    if (comm.rank() == 0) good = good && std::abs(rows[0] - 4 / norm) < 1e-15;
  });
#endif
#ifdef WITH_mpi
  int initialised = 1;
  MPI_Initialized(&initialised);
  good = good && initialised == 0;
#endif
#ifdef WITH_ggml
  ggml_context* ctx = ggml_init({.mem_size = 4096, .mem_buffer = nullptr, .no_alloc = false});
  const ggml_tensor* identity = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, 2, 3, 4);
  good = good && mpi_router::ggml::experts<float>(identity).shape() == mpi_router::expert_shape{4, 3, 2};
  ggml_free(ctx);
#endif
#ifdef WITH_io
  good = good && nlohmann::json::parse("[17]")[0] == 17;
#endif
  std::printf("%s: (%.17g, %.17g)\n", good ? "good" : "WRONG", out[0], out[1]);
  return good ? 0 : 1;
}
