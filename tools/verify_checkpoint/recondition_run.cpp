#include "recondition_run.hpp"

#include "find_layers.hpp"
#include "progress.hpp"
#include "recondition.hpp"
#include "table.hpp"
#include "terminal.hpp"

#include <fmt/format.h>

namespace verify {

using mpi_router::io::printable;

int run_recondition(arguments a) {
  using length = recondition_options::length;
  a.recondition.rule = a.radius ? length::radius : a.c_prime ? length::c_prime : length::keep;
  a.recondition.value = a.radius ? *a.radius : a.c_prime.value_or(0);
  const mpi_router::checkpoint model(a.source);
  const auto found = find_some(model, a);
  recondition_result result;
  {
    progress_bar bar("reconditioning");
    result = recondition(model, found.layers, a.target, a.recondition,
                         [&bar](index_t done, index_t all) { bar(done, all); });
  }
  for (const auto& kept : result.kept) {
    fmt::print("kept as it was: {}\n", printable(kept, 300));
  }
  fmt::print("{}", format_unmatched(found.omissions, wants_colour("auto")));
  fmt::print("{}: {} router rows in {} layer{}, {} step{} on; all else as in {}\n", printable(a.target, 4096),
             result.rows - static_cast<index_t>(result.kept.size()), found.size(),
             found.size() == 1 ? "" : "s", a.recondition.steps, a.recondition.steps == 1 ? "" : "s",
             printable(a.source, 4096));
  return 0;
}

}  // namespace verify
