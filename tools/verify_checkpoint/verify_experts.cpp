#include "verify_experts.hpp"

#include "lines_file.hpp"
#include "progress.hpp"
#include "run_header.hpp"

#include <mpi_router/io/file_error.hpp>

namespace verify {

namespace {

using json = nlohmann::ordered_json;

/// The lines of this run, if it writes any; the results that they have go to the list.
std::optional<lines_file> open_lines(const arguments& a, const json& header, task_list& tasks) {
  if (a.lines.empty()) {
    return std::nullopt;
  }
  std::optional<lines_file> lines(std::in_place, a.lines, header, a.resume);
  for (const auto& one : lines->found()) {
    if (!tasks.put(one)) {
      mpi_router::io::file_failure(a.lines, "expert ", one.result.expert, " of layer ", one.layer,
                                   " is there twice, or was not asked for");
    }
  }
  return lines;
}

/// Sees to it that all ranks do one work, and know what is left of it.
void agree(const ranks& all, const json& header, task_list& tasks) {
  all.settle();
  const auto mine = without_times(header);
  const auto other = difference(json::parse(all.from_first(mine.dump())), mine);
  const auto marks = all.from_first(tasks.marks());  // before one can fail: all take part in all messages
  require(other.empty(), "reads or does other things than the first rank: " + other);
  tasks.set_marks(marks);
  all.settle();
}

}  // namespace

outputs verify_experts(const arguments& a, const std::deque<mpi_router::checkpoint>& models,
                       const analysis_options& options, std::vector<checkpoint_result>& checkpoints,
                       ranks& all) {
  task_list tasks(checkpoints, a.sample);
  const auto header = header_of(checkpoints, models, options, a.sample);
  outputs files;
  std::optional<lines_file> lines;
  if (all.is_first()) {
    files = open_outputs({a.json == "-" ? "" : a.json, a.trace, a.report, a.lines}, models);
    lines = open_lines(a, header, tasks);
  }
  agree(all, header, tasks);

  all.start();
  progress_bar bar("verifying", tasks.finished());
  analyse(tasks, options, all, [&](const placed_result& one) {
    if (lines) {
      lines->append(one);
    }
    bar(tasks.finished() + 1, tasks.size());
  });
  all.finish();
  return files;
}

}  // namespace verify
