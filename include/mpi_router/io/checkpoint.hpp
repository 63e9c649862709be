// A checkpoint: one safetensors file, or shards that an index file or a folder brings together.
#pragma once

#include <mpi_router/io/foreign_folder.hpp>
#include <mpi_router/io/safetensors_file.hpp>

#include <deque>
#include <set>

MPIROUTER_BEGIN

namespace detail {

/// Collects the weight_map of a "*.safetensors.index.json": tensor name to file name.
class index_visitor {
 public:
  using levels = std::span<const json_level>;

  explicit index_visitor(const std::filesystem::path& file) : file_(file) {}

  void open(levels at, bool is_object) {
    if (at.size() == 1 && at[0].key == "weight_map" && is_object) {
      found = true;
    } else if (!at.empty() && at[0].key == "weight_map") {
      refuse(at);
    }
  }
  void scalar(levels at, const json_scalar& value) {
    if (at[0].key != "weight_map") {
      return;
    }
    if (at.size() != 2 || value.text == nullptr) {
      refuse(at);
    }
    weight_map.emplace(at[1].key, *value.text);
  }

  bool found = false;
  std::map<std::string, std::string> weight_map;

 private:
  [[noreturn]] void refuse(levels at) const {
    io::file_failure(
        file_, "the weight_map must map tensor names to file names",
        at.size() > 1 ? core::concatenate(", and '", io::printable(at[1].key), "' does not") : "");
  }

  const std::filesystem::path& file_;
};

/// Whether `name` is a plain file name: the shards of an index lie beside it and nowhere else.
[[nodiscard]] inline bool is_plain_file_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

}  // namespace detail

/// A checkpoint, opened from
///   - a safetensors file;
///   - an index file (its name ends in ".json"), whose "weight_map" names the shard of each tensor; shards
///   lie
///     in the folder of the index;
///   - a folder: by the one "*.safetensors.index.json" in it, else all its "*.safetensors".
/// Throws file_error for each damage that safetensors_file refuses, and for a missing shard, a tensor that
/// the index promises and its shard lacks, a tensor that two shards hold, an index that leads out of its
/// folder, and a folder with two indices or nothing in it. A tensor that only the shard knows is not part of
/// the checkpoint. Shards are mapped, and read where they are touched.
class checkpoint {
 public:
  explicit checkpoint(std::filesystem::path path) : path_(std::move(path)) {
    namespace fs = std::filesystem;
    std::error_code error;
    if (fs::is_directory(path_, error)) {
      open_folder();
    } else if (path_.extension() == ".json") {
      open_index(path_);
    } else {
      add_all_of(shards_.emplace_back(path_));
    }
    std::sort(tensors_.begin(), tensors_.end(), by_name);
    const auto twice = std::adjacent_find(tensors_.begin(), tensors_.end(), [](const auto* a, const auto* b) {
      return a->name() == b->name();
    });
    if (twice != tensors_.end()) {
      twice[1]->fail("is in ", twice[0]->file().filename().string(), " too");
    }
  }

  /// What the checkpoint was opened from.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  /// The index file; empty where there is none.
  [[nodiscard]] const std::filesystem::path& index() const noexcept { return index_; }
  /// The files, in the order of their names.
  [[nodiscard]] const std::deque<safetensors_file>& shards() const noexcept { return shards_; }
  /// All tensors of all shards, in the order of their names.
  [[nodiscard]] std::span<const stored_tensor* const> tensors() const noexcept { return tensors_; }

  /// The tensor of that name, or null. O(log n).
  [[nodiscard]] const stored_tensor* find(std::string_view name) const noexcept {
    const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const stored_tensor* t, auto wanted) { return t->name() < wanted; });
    return it != tensors_.end() && (*it)->name() == name ? *it : nullptr;
  }

 private:
  static bool by_name(const stored_tensor* a, const stored_tensor* b) {
    return std::pair(std::string_view(a->name()), std::string_view(a->file().native())) <
           std::pair(std::string_view(b->name()), std::string_view(b->file().native()));
  }

  void add_all_of(const safetensors_file& shard) {
    for (const auto& t : shard.tensors()) {
      tensors_.push_back(&t);
    }
  }

  void open_folder() {
    namespace fs = std::filesystem;
    std::set<fs::path> files;
    std::set<fs::path> indices;
    std::error_code error;
    for (fs::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name.starts_with('.')) {
        continue;  // hidden, and so are the temporary files of atomic_file
      }
      if (name.ends_with(".safetensors")) {
        files.insert(it->path());
      } else if (name.ends_with(".safetensors.index.json")) {
        indices.insert(it->path());
      }
    }
    if (error) {
      io::file_failure(path_, "cannot be listed: ", error.message());
    }
    if (indices.size() > 1) {
      io::file_failure(path_, "holds ", indices.size(), " index files; name the one to open, such as ",
                       indices.begin()->filename().string());
    }
    if (indices.size() == 1) {
      open_index(*indices.begin());
      return;
    }
    if (files.empty()) {
      io::file_failure(path_, foreign_folder(path_));
    }
    for (const auto& file : files) {
      add_all_of(shards_.emplace_back(file));
    }
  }

  void open_index(const std::filesystem::path& index) {
    index_ = index;
    const mapped_file file(index);
    const auto bytes = file.bytes();
    if (bytes.size() > safetensors_file::longest_header) {
      io::file_failure(index, "is too long for an index: ", bytes.size(), " bytes");
    }
    detail::index_visitor visitor(index);
    detail::read_strict_json(index, {reinterpret_cast<const char*>(bytes.data()), bytes.size()}, visitor);
    if (!visitor.found) {
      io::file_failure(index, "has no weight_map");
    }
    std::map<std::string, const safetensors_file*> opened;
    for (const auto& [tensor, shard] : visitor.weight_map) {
      if (!detail::is_plain_file_name(shard)) {
        io::file_failure(index, "tensor '", io::printable(tensor), "': its shard '", io::printable(shard),
                         "' is no plain file name");
      }
      opened.emplace(shard, nullptr);
    }
    for (auto& [shard, opened_file] : opened) {
      opened_file = &shards_.emplace_back(index.parent_path() / shard);
    }
    for (const auto& [tensor, shard] : visitor.weight_map) {
      const safetensors_file& holder = *opened.at(shard);
      const stored_tensor* const found = holder.find(tensor);
      if (found == nullptr) {
        io::file_failure(holder.path(), "has no tensor '", io::printable(tensor), "', which ",
                         index.filename().string(), " promises");
      }
      tensors_.push_back(found);
    }
  }

  std::filesystem::path path_;
  std::filesystem::path index_;
  std::deque<safetensors_file> shards_;  // a deque: tensors_ points into its elements
  std::vector<const stored_tensor*> tensors_;
};

MPIROUTER_END
