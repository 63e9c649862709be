#include "recondition.hpp"

#include "parallel.hpp"
#include "weights.hpp"

#include <mpi_router/io/atomic_folder.hpp>
#include <mpi_router/io/checkpoint.hpp>
#include <mpi_router/manifold/power_iteration.hpp>

#include <cmath>
#include <cstring>
#include <map>

namespace verify {

namespace {

namespace fs = std::filesystem;
using namespace mpi_router;

/// New bytes for one tensor.
using replacements = std::map<const stored_tensor*, std::vector<std::byte>>;

/// Rounds a row to the type of the router and puts it in its place among the router's bytes.
void store_row(const moe_layer& layer, index_t i, const Eigen::VectorXd& row, std::vector<std::byte>& bytes) {
  const bool turned = layer.layout_of_router == router_layout::dn;
  const index_t step = turned ? layer.router_rows : 1;
  const index_t begin = turned ? i : i * row.size();
  visit_type(*layer.router->plain(), [&]<class T>(T) {
    for (index_t d = 0; d < row.size(); ++d) {
      const T value = narrow<T>(row[d]);
      if (!is_finite(value)) {
        layer.router->fail("a row of that length does not fit in ", layer.router->stored_as());
      }
      const auto& part = layer.router->part();
      const index_t place = part ? part->place_of(begin + d * step) : begin + d * step;
      std::memcpy(bytes.data() + static_cast<std::size_t>(place) * sizeof(T), &value, sizeof(T));
    }
  });
}

double radius_for(const recondition_options& options, const moe_layer& layer, const Eigen::VectorXd& row) {
  switch (options.rule) {
    case recondition_options::length::keep: return row.stableNorm();
    case recondition_options::length::radius: return options.value;
    case recondition_options::length::c_prime:
      return options.value / std::sqrt(static_cast<double>(layer.router_rows));
  }
  return 1;
}

/// Takes the row of one expert `steps` further; its status if it has no step.
status advance(const moe_layer& layer, index_t expert, const recondition_options& options,
               Eigen::VectorXd& row) {
  const gate_matrix a = read_gate(layer, expert);
  const double length = row.stableNorm();
  if (!std::isfinite(length) || length == 0) {
    return length == 0 ? status::zero_row : status::non_finite;
  }
  if (options.steps == 0 && options.rule == recondition_options::length::keep) {
    return status::ok;
  }
  Eigen::VectorXd scratch(row.size());
  return power_iteration(gate_operator(a), view(row), view(scratch),
                         {.max_steps = options.steps, .radius = radius_for(options, layer, row)})
      .state;
}

/// What a process's shard repeats of another's changes with it.
void write_shard(const safetensors_file& shard, const replacements& changed, const fs::path& target) {
  const bool is_of_process = mpi_router::detail::is_of_rank(io::path_text(shard.path().filename()));
  atomic_file file(target);
  file.write(shard.header());
  for (const auto& tensor : shard.tensors()) {
    const auto it = std::ranges::find_if(changed, [&](const auto& each) {
      return each.first == &tensor || (is_of_process && each.first->name() == tensor.name());
    });
    file.write(it == changed.end() ? tensor.bytes() : std::span<const std::byte>(it->second));
  }
  file.commit();
}

/// A router row of a model, some steps on, or why it has none.
struct new_row {
  const moe_layer* layer;
  index_t expert;
  Eigen::VectorXd row = {};
  status state = status::ok;
};

/// All of them, spread over threads.
std::vector<new_row> advance_all(const std::vector<moe_layer>& layers, const recondition_options& options,
                                 const std::function<void(index_t, index_t)>& progress) {
  std::vector<new_row> rows;
  for (const auto& layer : layers) {
    for (index_t e = 0; e < layer.num_experts; ++e) {
      rows.push_back({&layer, e});
    }
  }
  Eigen::setNbThreads(1);  // the experts are what is spread
  for_each_parallel(
      static_cast<index_t>(rows.size()),
      [&](index_t i) {
        auto& r = rows[static_cast<std::size_t>(i)];
        r.row = read_row(*r.layer, r.expert);
        r.state = advance(*r.layer, r.expert, options, r.row);
      },
      progress);
  return rows;
}

/// The routers with the new rows in them, and what is to be told of that.
replacements replace_rows(const std::vector<new_row>& rows, recondition_result& result) {
  replacements changed;
  for (const auto& r : rows) {
    const auto& router = *r.layer->router->plain();
    auto& bytes = changed.try_emplace(&router, router.bytes().begin(), router.bytes().end()).first->second;
    ++result.rows;
    if (r.state == status::ok) {
      store_row(*r.layer, r.expert, r.row, bytes);
    } else {
      result.kept.push_back(
          core::concatenate(r.layer->name, ", expert ", r.expert, ": ", to_string(r.state)));
    }
  }
  return changed;
}

/// Throws file_error where the new file may not be written.
void check_new_file(const fs::path& out) {
  if (fs::is_directory(out)) {
    io::file_failure(out, "is a folder; name a file");
  }
  if (std::error_code error; fs::exists(fs::symlink_status(out, error))) {
    io::file_failure(out, "exists; name a file that does not");
  }
}

/// Throws file_error where new rows cannot be written as the old ones were.
void check_writable(const checkpoint& model, const std::vector<moe_layer>& layers) {
  if (!model.gguf().empty()) {
    io::file_failure(model.path(),
                     "is GGUF, which is read and not written; recondition the model that it was made from");
  }
  for (const auto& layer : layers) {
    if (layer.router->is_packed()) {
      layer.router->fail("is packed, as ", layer.router->stored_as(),
                         ": new rows would have to be packed again; write the router out in bf16 first");
    }
  }
}

void write_folder(const checkpoint& model, const replacements& changed, atomic_folder& folder) {
  for (const auto& shard : model.shards()) {
    write_shard(shard, changed, folder.add(shard.path().filename()));
  }
  if (!model.index().empty()) {
    atomic_file index(folder.add(model.index().filename()));
    index.write(mapped_file(model.index()).bytes());
    index.commit();
  }
  folder.commit();
}

}  // namespace

recondition_result recondition(const checkpoint& model, const std::vector<moe_layer>& layers,
                               const fs::path& out, const recondition_options& options,
                               const std::function<void(index_t, index_t)>& progress) {
  check_writable(model, layers);
  const bool one_file =
      model.index().empty() && model.shards().size() == 1 && model.shards()[0].path() == model.path();
  for (const auto& shard : model.shards()) {
    if (same_file(shard.path(), out)) {
      io::file_failure(out, "is part of the input, which is never overwritten");
    }
  }
  std::optional<atomic_folder> folder;  // made before the work, so that it is known whether it can be
  if (one_file) {
    check_new_file(out);
  } else {
    folder.emplace(out);
  }
  recondition_result result;
  const auto changed = replace_rows(advance_all(layers, options, progress), result);
  if (one_file) {
    write_shard(model.shards()[0], changed, out);
  } else {
    write_folder(model, changed, *folder);
  }
  return result;
}

}  // namespace verify
