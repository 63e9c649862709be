// Drift: W changes while the row follows. Stateless and stateful tracking, and the angle floor of the latter.
#include "demonstration.hpp"

#include <array>

using namespace theory;

namespace {

/// An expert with singular values 1, κ and smaller ones, whose two principal directions turn by δ a time
/// step.
class turning_expert {
 public:
  turning_expert(double kappa, double delta) : delta_(delta), sigma_(6) {
    sigma_ << 1, kappa, 0.5 * kappa, 0.3 * kappa, 0.2 * kappa, 0.1 * kappa;
    turn_to(0);
  }
  void turn_to(int time) {
    const double angle = delta_ * time;
    MatrixXd turn = MatrixXd::Identity(6, 6);
    turn.topLeftCorner(2, 2) << std::cos(angle), -std::sin(angle), std::sin(angle), std::cos(angle);
    principal_ = turn.col(0);
    a_ = sigma_.asDiagonal() * turn.transpose();
  }
  [[nodiscard]] const MatrixXd& a() const { return a_; }
  [[nodiscard]] double angle_of(const VectorXd& row) const { return angle_between(row, principal_); }

 private:
  double delta_;
  VectorXd sigma_;
  VectorXd principal_;
  MatrixXd a_;
};

double floor_of(double kappa, double delta) { return kappa * kappa * delta / (1 - kappa * kappa); }

/// The angle that stays between a stateful row and the principal direction.
double measured_floor(double kappa, double delta) {
  turning_expert expert(kappa, delta);
  VectorXd row = VectorXd::Unit(6, 0);
  VectorXd scratch(6);
  for (int time = 1; time <= 2000; ++time) {
    expert.turn_to(time);
    stateful_power_step(gram(expert.a()), view(row), view(scratch), 1.0);
  }
  return expert.angle_of(row);
}

}  // namespace

int main(int argc, char** argv) {
  return run(argc, argv, "drift", [](const demonstration& demo) {
    constexpr double kappa = 0.8;
    constexpr double delta = 0.5 * degree;
    turning_expert expert(kappa, delta);
    const VectorXd trained = VectorXd{{0.8, 0.2, 0.3, 0.3, 0.2, 0.3}}.normalized();
    VectorXd tracked = trained;
    VectorXd recomputed(6);
    VectorXd scratch(6);
    std::vector<std::vector<double>> course;
    for (int time = 0; time <= 160; ++time) {
      expert.turn_to(time);
      const auto op = gram(expert.a());
      power_step(op, view(trained), view(recomputed), 1.0);        // R stays, r′ is made anew
      stateful_power_step(op, view(tracked), view(scratch), 1.0);  // r′ is written back
      course.push_back({static_cast<double>(time), expert.angle_of(trained) / degree,
                        expert.angle_of(recomputed) / degree, expert.angle_of(tracked) / degree});
    }
    demo.csv("course", "time,stored_deg,stateless_deg,stateful_deg", course);

    std::vector<std::vector<double>> floors;
    for (const double k : {0.5, 0.8, 0.9, 0.95}) {
      for (double d = 0.01; d < 1.5; d *= 2) {
        floors.push_back({k, d, floor_of(k, d * degree) / degree, measured_floor(k, d * degree) / degree});
      }
    }
    demo.csv("floor", "kappa,delta_deg,theory_deg,measured_deg", floors);

    fmt::print(
        "W turns by δ = {:.1f}° a time step; κ = σ₂/σ₁ = {:.1f}.\n"
        "Stateless: the stored row stays where it was, one step from it helps less and less: {:.0f}° off "
        "after 160.\n"
        "Stateful: the row is written back and follows, at {:.2f}° behind; κ²δ/(1 − κ²) = {:.2f}°.\n"
        "(In training the stored row of the stateless form is moved by its own gradient; here nothing trains "
        "it.)\n"
        "The smaller the gap, the farther behind: see the right panel.\n",
        delta / degree, kappa, course.back()[2], course.back()[3], floor_of(kappa, delta) / degree);
    demo.figure(900, 400, R"gp(
set datafile columnheaders
set multiplot layout 1,2
set xlabel "time step"
set ylabel "angle to v₁ of the moment (degrees)"
set yrange [0:90]
set ytics 15
plot "drift-course.csv" using 1:2 with lines lw 2 lc rgb "#808080" title "stored row", \
  "" using 1:3 with lines lw 2 lc rgb "#d0660a" title "stateless: one step from it", \
  "" using 1:4 with lines lw 2 lc rgb "#3b7fd4" title "stateful: written back"
set xlabel "drift δ (degrees a time step)"
set ylabel "angle behind v₁ (degrees)"
set logscale xy
set xrange [0.008:2]
set yrange [0.002:20]
set ytics auto
plot "drift-floor.csv" using ($1==0.5 ? $2 : NaN):3 with lines lw 2 lc rgb "#2a9058" title "κ²δ/(1−κ²), κ = 0.5", \
  "" using ($1==0.5 ? $2 : NaN):4 with points pt 7 lc rgb "#2a9058" notitle, \
  "" using ($1==0.8 ? $2 : NaN):3 with lines lw 2 lc rgb "#3b7fd4" title "κ = 0.8", \
  "" using ($1==0.8 ? $2 : NaN):4 with points pt 7 lc rgb "#3b7fd4" notitle, \
  "" using ($1==0.9 ? $2 : NaN):3 with lines lw 2 lc rgb "#a05ac8" title "κ = 0.9", \
  "" using ($1==0.9 ? $2 : NaN):4 with points pt 7 lc rgb "#a05ac8" notitle, \
  "" using ($1==0.95 ? $2 : NaN):3 with lines lw 2 lc rgb "#dd4048" title "κ = 0.95", \
  "" using ($1==0.95 ? $2 : NaN):4 with points pt 7 lc rgb "#dd4048" title "measured"
unset multiplot
)gp");
  });
}
