// Layouts: where each named function looks for each number. The picture is taken from the views themselves.
#include "demonstration.hpp"

#include <mpi_router/core/experts.hpp>

using namespace theory;

namespace {

constexpr expert_shape shape{.num_experts = 2, .ffn_dim = 2, .hidden_dim = 3};

using make_view = expert_batch_view<const float> (*)(const float*, fused_half);

struct layout {
  const char* name;
  bool fused;  ///< gate and up in one tensor
  make_view view;
};

constexpr layout layouts[]{
    {"experts_nfd  [N, F, D]", false, [](const float* p, fused_half) { return experts_nfd(p, shape); }},
    {"experts_ndf  [N, D, F]", false, [](const float* p, fused_half) { return experts_ndf(p, shape); }},
    {"experts_n2fd_concatenated  [N, 2F, D]", true,
     [](const float* p, fused_half half) { return experts_n2fd_concatenated(p, shape, half); }},
    {"experts_n2fd_interleaved  [N, 2F, D]", true,
     [](const float* p, fused_half half) { return experts_n2fd_interleaved(p, shape, half); }},
    {"experts_nd2f_concatenated  [N, D, 2F]", true,
     [](const float* p, fused_half half) { return experts_nd2f_concatenated(p, shape, half); }},
    {"experts_nd2f_interleaved  [N, D, 2F]", true,
     [](const float* p, fused_half half) { return experts_nd2f_interleaved(p, shape, half); }}};

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "layouts", [](const demonstration& demo) {
    constexpr index_t most = 2 * shape.num_experts * shape.ffn_dim * shape.hidden_dim;
    const std::vector<float> memory(static_cast<std::size_t>(most));
    table cells;
    std::string names;
    int strip = 0;
    for (const auto& layout : layouts) {
      for (const auto half : {fused_half::gate, fused_half::up}) {
        if (half == fused_half::up && !layout.fused) {
          continue;
        }
        const auto experts = layout.view(memory.data(), half);
        for (index_t e = 0; e < shape.num_experts; ++e) {
          for (index_t f = 0; f < shape.ffn_dim; ++f) {
            for (index_t d = 0; d < shape.hidden_dim; ++d) {
              const auto address = &experts[e](f, d) - memory.data();
              cells.push_back({static_cast<double>(strip), static_cast<double>(address),
                               half == fused_half::up ? 1.0 : 0.0, static_cast<double>(e),
                               static_cast<double>(f), static_cast<double>(d)});
            }
          }
        }
      }
      names += fmt::format("set label {} \"{}\" at -0.5,{} left noenhanced\n", strip + 1, layout.name,
                           -3.2 * strip + 0.75);
      ++strip;
    }
    demo.csv("cells", "strip,address,up,expert,neuron,hidden", cells);
    fmt::print(
        "N = {} experts, F = {} neurons each, D = {} hidden dimensions. One strip of memory a layout; each "
        "cell\n"
        "is one number, named by expert, neuron f and hidden dimension d. Grey cells belong to the up "
        "projection.\n",
        shape.num_experts, shape.ffn_dim, shape.hidden_dim);
    demo.figure("layouts",
                fmt::format("N = {} experts, F = {} neurons (f0, f1), D = {} hidden dimensions (d0, d1, d2)",
                            shape.num_experts, shape.ffn_dim, shape.hidden_dim),
                names);
  });
}
