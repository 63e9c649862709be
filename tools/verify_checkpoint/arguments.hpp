// What the command line of verify_checkpoint asks for, and what is wrong with it.
#pragma once

#include "recondition.hpp"
#include "selection.hpp"

#include <mpi_router/io/moe/search_options.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace verify {

/// Bad input or usage: exit status 2 and this one line.
class input_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws input_error unless `condition` holds.
void require(bool condition, const std::string& message);

struct arguments {
  std::vector<std::string> inputs;
  std::string router;
  std::string gate;
  std::string layout;
  std::string layout_of_router;
  std::string of = "gate";     ///< "gate+up+down"
  std::string layout_of_down;  ///< nfd or ndf
  std::string json;
  std::string trace;
  std::string report;
  std::string lines;
  bool resume = false;
  std::string command;             ///< all of it, for the report
  std::vector<std::string> again;  ///< words_again() of it
  double tolerance = 1e-6;
  index_t max_steps = 10000;
  std::optional<double> require_angle;
  bool no_svd = false;
  bool svd = false;
  bool list = false;
  std::string layers;  ///< "3,17-20"
  std::optional<index_t> sample;
  int threads = 0;  ///< 0: as many as there are
  bool gpu = false;
  bool worst_first = false;
  bool experts = false;
  bool summary = false;
  std::string colour = "auto";

  std::string source;
  std::string target;
  recondition_options recondition;
  std::optional<double> radius;
  std::optional<double> c_prime;
  bool keep_norm = false;
};

/// Throws input_error for what no option can mean.
void check(const arguments& a);

/// The layers and experts to look at.
[[nodiscard]] selection selected(const arguments& a);

/// The tensors to look for.
[[nodiscard]] mpi_router::moe_search naming(const arguments& a);

}  // namespace verify
