// Why one step keeps up with weights that move, where the row is written back: the adaptive step of Eq. 10
// shrinks as the row aligns, until it is as long as the weights drift.
#include "demonstration.hpp"

#include <mpi_router/io/safetensors.hpp>
#include <mpi_router/verify/singular.hpp>

#include <array>

#ifndef THEORY_DATA
#define THEORY_DATA "examples/data"
#endif

using namespace theory;

namespace {

constexpr double kappa = 0.7;

/// A row that steps once each time its expert has turned by `delta` in the plane of v₁ and v₂.
std::vector<std::vector<double>> follow(double delta, int times) {
  VectorXd sigma(8);
  sigma << 1, kappa, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1;
  VectorXd row = gaussian(8, 1, 31).normalized();
  VectorXd next(8);
  std::vector<std::vector<double>> course;
  for (int time = 0; time <= times; ++time) {
    const double turned = delta * time;
    MatrixXd turn = MatrixXd::Identity(8, 8);
    turn.topLeftCorner(2, 2) << std::cos(turned), -std::sin(turned), std::sin(turned), std::cos(turned);
    const MatrixXd a = sigma.asDiagonal() * turn.transpose();
    const double theta = angle_between(row, turn.col(0));
    const auto at = rayleigh(gram(a), view(row), view(next));
    const auto length = adaptive_step_length(at);
    power_step(gram(a), view(row), view(next), 1.0);
    course.push_back({static_cast<double>(time), theta / degree, length.tangential, length.geodesic / degree,
                      angle<double>(view(row), view(next)) / degree});
    row = next;
  }
  return course;
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "one_step", [](const demonstration& demo) {
    constexpr std::array<double, 3> deltas{0, 0.02 * degree, 0.5 * degree};
    std::vector<std::vector<double>> table;
    for (const double delta : deltas) {
      for (auto& line : follow(delta, 80)) {
        line.insert(line.begin(), delta / degree);
        table.push_back(std::move(line));
      }
    }
    demo.csv("course", "delta_deg,time,angle_deg,tan_psi,psi_deg,moved_deg", table);

    // Real rows: both small models that come with the project.
    std::vector<std::vector<double>> real;
    for (const char* name : {"tiny-vanilla.safetensors", "tiny-mpi.safetensors"}) {
      const safetensors_file model(std::string(THEORY_DATA) + "/" + name);
      for (const char* layer : {"model.layers.0.mlp.", "model.layers.1.mlp."}) {
        const auto* router = model.find(std::string(layer) + "router.weight");
        const auto* gates = model.find(std::string(layer) + "experts.gate_proj");
        if (router == nullptr || gates == nullptr) {
          throw std::runtime_error(std::string(name) + " lacks " + layer);
        }
        const auto rows = router->load<float>();
        const auto weights = gates->load<bf16>();
        const index_t num_experts = gates->shape()[0];
        const index_t ffn_dim = gates->shape()[1];
        const index_t hidden_dim = gates->shape()[2];
        for (index_t e = 0; e < num_experts; ++e) {
          const auto gate = gate_fd(weights.data() + e * ffn_dim * hidden_dim, ffn_dim, hidden_dim);
          VectorXd row =
              Eigen::Map<const Eigen::VectorXf>(rows.data() + e * hidden_dim, hidden_dim).cast<double>();
          VectorXd g(hidden_dim);
          const singular_spectrum spectrum(gate);
          const auto at = rayleigh(gram<double>(gate), view(row), view(g));
          real.push_back({std::string_view(name) == "tiny-mpi.safetensors" ? 1.0 : 0.0,
                          spectrum.angle(view(std::as_const(row))) / degree,
                          adaptive_step_length(at).geodesic / degree});
        }
      }
    }
    demo.csv("real", "mpi,angle_deg,psi_deg", real);

    const auto& settled = table.back();
    fmt::print(
        "The step of Eq. 10 moves a row by the angle ψ with tan ψ = ‖g‖/ρ, with no step size to choose.\n"
        "Near v₁ it is (1 − κ²) of what is left: tan θ shrinks by κ² = {:.2f} a step.\n"
        "When the weights turn by δ = {:.2f}° between two steps and the row is written back (stateful), it "
        "settles\n"
        "{:.2f}° behind, and each step is {:.2f}° long: just what the weights moved. One step is enough to "
        "keep up;\n"
        "what stays behind is small as long as the weights change little between steps. The paper's router "
        "does not\n"
        "write back: there the gradient moves the row, and the step starts from it anew (theory_drift).\n",
        kappa * kappa, settled[0], settled[2], settled[4]);
    demo.figure(900, 400, R"gp(
set datafile columnheaders
set multiplot layout 1,2
set xlabel "step"
set ylabel "length of the step, ψ (degrees)"
set logscale y
set format y "10^{%T}"
set yrange [1e-6:200]
set xrange [0:60]
plot "one_step-course.csv" using ($1==0.5 ? $2 : NaN):5 with linespoints pt 7 ps 0.4 lw 2 lc rgb "#dd4048" title "W turns by 0.5° a step", \
  "" using ($1==0.02 ? $2 : NaN):5 with linespoints pt 7 ps 0.4 lw 2 lc rgb "#3b7fd4" title "by 0.02° a step", \
  "" using ($1==0 ? $2 : NaN):5 with linespoints pt 7 ps 0.4 lw 2 lc rgb "#2a9058" title "W stays"
set xlabel "angle θ of the row to v₁ (degrees)"
set ylabel "length of the step, ψ (degrees)"
unset logscale y
set format y "%g"
set xrange [0:90]
set yrange [0:90]
set xtics 15
set ytics 15
plot "one_step-course.csv" using ($1==0 ? $3 : NaN):5 with linespoints pt 7 ps 0.5 lw 2 lc rgb "#2a9058" title "W stays", \
  "one_step-real.csv" using ($1==0 ? $2 : NaN):3 with points pt 5 ps 0.7 lc rgb "#d0660a" title "rows of the usual tiny model", \
  "" using ($1==1 ? $2 : NaN):3 with points pt 7 ps 0.7 lc rgb "#3b7fd4" title "rows of the MPI tiny model"
unset multiplot
)gp");
  });
}
