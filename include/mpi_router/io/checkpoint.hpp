// A checkpoint: safetensors or GGUF, one file, or shards that an index file, a folder or their names bring
// together.
#pragma once

#include <mpi_router/io/foreign_folder.hpp>
#include <mpi_router/io/gguf_parts.hpp>
#include <mpi_router/io/gguf_weights.hpp>
#include <mpi_router/io/moe/model_config.hpp>
#include <mpi_router/io/packed/recognise.hpp>
#include <mpi_router/io/safetensors_file.hpp>
#include <mpi_router/io/scanned.hpp>
#include <mpi_router/io/shards.hpp>

#include <cstring>
#include <deque>
#include <map>
#include <set>

MPIROUTER_BEGIN

/// A checkpoint, opened from a safetensors file; an index (".json"), whose "weight_map" names each tensor's
/// shard in the same folder; a GGUF file, with all others of its series; or a folder: by its one
/// "*.safetensors.index.json", else all its "*.safetensors", else its one model in GGUF. Shards are mapped,
/// and read where they are touched.
///
/// Throws file_error for each damage that safetensors_file refuses, a missing shard, a tensor that the index
/// promises and its shard lacks, a tensor that two shards hold (but those of DeepSeek's processes, which
/// repeat what all have), an index that leads out of its folder, and a folder with two indices or nothing in
/// it. What a shard holds and the index does not name is left out, see
/// unindexed(); whether these files are all of the model only names tell: missing_shards(), unlisted_files().
///
/// tensors() are what files store, weights() what that means to a model: codes and scales, as the config.json
/// beside describes them, are one weight.
class checkpoint {
 public:
  explicit checkpoint(std::filesystem::path path) : path_(std::move(path)) {
    namespace fs = std::filesystem;
    std::error_code error;
    if (fs::is_directory(path_, error)) {
      open_folder();
    } else if (path_.extension() == ".gguf" || detail::start_of(path_).starts_with("GGUF")) {
      open_gguf(path_);
    } else if (path_.extension() == ".json") {
      open_index(path_);
    } else {
      add_all_of(shards_.emplace_back(path_));
    }
    std::sort(tensors_.begin(), tensors_.end(), by_name);
    tensors_.erase(std::unique(tensors_.begin(), tensors_.end(), is_repeated), tensors_.end());
    const auto twice = std::adjacent_find(tensors_.begin(), tensors_.end(), [](const auto* a, const auto* b) {
      return a->name() == b->name() && !(is_of_rank(*a) && is_of_rank(*b));
    });
    if (twice != tensors_.end()) {
      twice[1]->fail("is in ", io::printable(io::path_text(twice[0]->file().filename())), " too");
    }
    if (gguf_.empty()) {
      packing_ = read_quantization(path_);
      weights_ = detail::split_scans(weights_of(tensors_, packing_), experts_named());
      detail::packing::refuse_doubles(weights_);  // a layer of a scan and one of its own
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

  /// The weights that the files hold, in the order of their names.
  [[nodiscard]] std::span<const weight> weights() const noexcept { return weights_; }
  /// The weight of that name, or null. O(log n).
  [[nodiscard]] const weight* find_weight(std::string_view name) const noexcept {
    const auto found = weights_with(name);
    return !found.empty() && found.front().name() == name ? &found.front() : nullptr;
  }
  /// The weights whose names begin so, in order.
  [[nodiscard]] std::span<const weight> weights_with(std::string_view prefix) const noexcept {
    const auto begin = std::ranges::lower_bound(weights_, prefix, {},
                                                [](const auto& w) { return std::string_view(w.name()); });
    const auto end = std::partition_point(begin, weights_.end(),
                                          [&](const auto& w) { return w.name().starts_with(prefix); });
    return {begin, end};
  }
  /// What the config.json beside says of packed weights.
  [[nodiscard]] const quantization& packing() const noexcept { return packing_; }
  /// The GGUF files, in the order of their series; empty where it is safetensors.
  [[nodiscard]] const std::deque<gguf_file>& gguf() const noexcept { return gguf_; }
  /// All files that are mapped.
  [[nodiscard]] std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> all;
    all.reserve(shards_.size() + gguf_.size());
    for (const auto& shard : shards_) {
      all.push_back(shard.path());
    }
    for (const auto& part : gguf_) {
      all.push_back(part.path());
    }
    return all;
  }

  /// The tensors of the shards that the index does not name, in the order of their names.
  [[nodiscard]] std::span<const stored_tensor* const> unindexed() const noexcept { return unindexed_; }
  /// The "*.safetensors" files beside the index that it does not name, or the projectors of images beside a
  /// model in GGUF, in order.
  [[nodiscard]] const std::vector<std::string>& unlisted_files() const noexcept { return unlisted_; }
  /// The files that belong to these shards by name, "model-00003-of-00003.safetensors", and were not read: in
  /// order.
  [[nodiscard]] std::vector<std::string> missing_shards() const {
    std::set<std::string> files;
    for (const auto& shard : shards_) {
      files.insert(io::path_text(shard.path().filename()));
    }
    return detail::promised_shards(files);
  }

  /// The tensor of that name, or null. O(log n).
  [[nodiscard]] const stored_tensor* find(std::string_view name) const noexcept {
    const auto it = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const stored_tensor* t, auto wanted) { return t->name() < wanted; });
    return it != tensors_.end() && (*it)->name() == name ? *it : nullptr;
  }

 private:
  /// The experts of a layer, where config.json says how many.
  [[nodiscard]] std::optional<index_t> experts_named() const {
    const auto config = read_model_config(path_);
    return config ? config->num_experts : std::nullopt;
  }

  static bool by_name(const stored_tensor* a, const stored_tensor* b) {
    return a->name() != b->name() ? a->name() < b->name() : a->file().native() < b->file().native();
  }

  static bool is_of_rank(const stored_tensor& t) {
    return detail::is_of_rank(io::path_text(t.file().filename()));
  }
  /// Whether two processes' shards hold one tensor, each the whole of it. Attention is not compared: no
  /// search looks at it, and it is most of what they repeat.
  static bool is_repeated(const stored_tensor* a, const stored_tensor* b) {
    return a->name() == b->name() && a->type() == b->type() && std::ranges::equal(a->shape(), b->shape()) &&
           is_of_rank(*a) && is_of_rank(*b) && !detail::moe::is_of_attention(a->name()) &&
           (a->bytes().empty() || std::memcmp(a->bytes().data(), b->bytes().data(), a->bytes().size()) == 0);
  }

  void add_all_of(const safetensors_file& shard) {
    for (const auto& t : shard.tensors()) {
      tensors_.push_back(&t);
    }
  }

  /// The files of a folder whose names end so; hidden ones, such as the temporary files of atomic_file, are
  /// none.
  static std::set<std::filesystem::path> files_in(const std::filesystem::path& folder, std::string_view end,
                                                  std::error_code& error) {
    std::set<std::filesystem::path> files;
    for (std::filesystem::directory_iterator it(folder, error), last; !error && it != last;
         it.increment(error)) {
      const std::string name = io::path_text(it->path().filename());
      if (!name.starts_with('.') && name.ends_with(end)) {
        files.insert(it->path());
      }
    }
    return files;
  }

  void open_folder() {
    std::error_code error;
    const auto files = files_in(path_, ".safetensors", error);
    const auto indices = error ? files : files_in(path_, ".safetensors.index.json", error);
    if (error) {
      io::file_failure(path_, "cannot be listed: ", error.message());
    }
    if (indices.size() > 1) {
      io::file_failure(path_, "holds ", indices.size(), " index files; name the one to open, such as ",
                       io::printable(io::path_text(indices.begin()->filename())));
    }
    if (indices.size() == 1) {
      open_index(*indices.begin());
      return;
    }
    if (files.empty()) {
      open_gguf_of(path_);
      return;
    }
    for (const auto& file : files) {
      add_all_of(shards_.emplace_back(file));
    }
  }

  /// The one model in GGUF that a folder holds; projectors of images ("mmproj" in their names) may lie
  /// beside it, and are not read.
  void open_gguf_of(const std::filesystem::path& folder) {
    std::error_code error;
    std::set<std::filesystem::path> models;
    auto files = files_in(folder, ".gguf", error);
    const auto is_projector = [](const auto& file) {
      return io::path_text(file.filename()).find("mmproj") != std::string::npos;
    };
    if (!std::ranges::all_of(files, is_projector)) {
      for (const auto& file : files) {
        if (is_projector(file)) {
          unlisted_.push_back(io::path_text(file.filename()));
        }
      }
      std::erase_if(files, is_projector);
    }
    for (const auto& file : files) {
      const auto part = detail::gguf_part_of(io::path_text(file.filename()));
      models.insert(part ? folder / io::path_named(part->sibling(1)) : file);
    }
    if (error || models.empty()) {
      io::file_failure(folder, foreign_folder(folder));
    }
    if (models.size() > 1) {
      io::file_failure(folder, "holds ", models.size(), " models in GGUF; name the one to open, such as ",
                       io::printable(io::path_text(models.begin()->filename())));
    }
    open_gguf(*models.begin());
  }

  void open_gguf(const std::filesystem::path& path) {
    std::vector<gguf_file> series;
    for (const auto& part : gguf_parts(path)) {
      series.emplace_back(part);
    }
    check_series(series);
    std::ranges::move(series, std::back_inserter(gguf_));
    for (const auto& part : gguf_) {
      detail::add_weights(part, gguf_, plain_, weights_);
    }
    std::ranges::sort(weights_, {}, &weight::name);
    const auto twice = std::ranges::adjacent_find(weights_, {}, &weight::name);
    if (twice != weights_.end()) {
      twice[1].fail("is in ", io::printable(io::path_text(twice[0].file().filename())), " too");
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
    detail::read_json_file(file, visitor);
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
      opened_file = &shards_.emplace_back(index.parent_path() / io::path_named(shard));
    }
    for (const auto& [tensor, shard] : visitor.weight_map) {
      const safetensors_file& holder = *opened.at(shard);
      const stored_tensor* const found = holder.find(tensor);
      if (found == nullptr) {
        io::file_failure(holder.path(), "has no tensor '", io::printable(tensor), "', which ",
                         io::printable(io::path_text(index.filename())), " promises");
      }
      tensors_.push_back(found);
    }
    note_what_it_omits(visitor.weight_map);
  }

  void note_what_it_omits(const std::map<std::string, std::string>& weight_map) {
    std::set<std::string> read;
    for (const auto& shard : shards_) {
      read.insert(io::path_text(shard.path().filename()));
      for (const auto& t : shard.tensors()) {
        if (!weight_map.contains(t.name())) {
          unindexed_.push_back(&t);
        }
      }
    }
    std::sort(unindexed_.begin(), unindexed_.end(), by_name);
    std::error_code error;  // a folder that cannot be listed hides nothing that the index names
    const auto folder = index_.has_parent_path() ? index_.parent_path() : std::filesystem::path(".");
    for (const auto& file : files_in(folder, ".safetensors", error)) {
      if (const auto name = io::path_text(file.filename()); !read.contains(name)) {
        unlisted_.push_back(name);
      }
    }
  }

  std::filesystem::path path_;
  std::filesystem::path index_;
  std::deque<safetensors_file> shards_;  // a deque: tensors_ points into its elements
  std::vector<const stored_tensor*> tensors_;
  std::vector<const stored_tensor*> unindexed_;
  std::vector<std::string> unlisted_;
  quantization packing_;
  std::deque<gguf_file> gguf_;
  std::deque<stored_tensor> plain_;  ///< of GGUF files: those that are no blocks
  std::vector<weight> weights_;
};

MPIROUTER_END
