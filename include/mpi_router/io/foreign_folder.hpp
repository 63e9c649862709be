// What a folder is that holds no safetensors file: where its weights are, or in which format.
#pragma once

#include <mpi_router/io/file_kind.hpp>

#include <fstream>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

MPIROUTER_BEGIN

namespace detail {

/// The names in a folder, in UTF-8 and in their order; nothing where it cannot be listed.
[[nodiscard]] inline std::set<std::string> names_in(const std::filesystem::path& folder) {
  std::set<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    names.insert(io::path_text(it->path().filename()));
  }
  return names;
}

[[nodiscard]] inline bool is_folder(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::is_directory(path, error);
}

/// The first bytes of a regular file; empty if it is none or cannot be read.
[[nodiscard]] inline std::string start_of(const std::filesystem::path& path) {
  std::error_code error;
  std::string start;
  if (std::filesystem::is_regular_file(path, error)) {
    start.resize(telling_bytes);
    std::ifstream in(path, std::ios::binary);
    in.read(start.data(), static_cast<std::streamsize>(start.size()));
    start.resize(static_cast<std::size_t>(in.gcount()));
  }
  return start;
}

/// The snapshot to open in a folder "models--org--name" of the Hugging Face cache, relative to it: the one
/// that the branch main is at, or the first. Empty in other folders.
[[nodiscard]] inline std::filesystem::path cached_snapshot(const std::filesystem::path& folder) {
  if (!is_folder(folder / "snapshots") || !(is_folder(folder / "blobs") || is_folder(folder / "refs"))) {
    return {};
  }
  const std::string main = start_of(folder / "refs" / "main");
  const std::string commit = main.substr(0, main.find_first_of(whitespace));
  const auto snapshots = names_in(folder / "snapshots");
  if (snapshots.contains(commit)) {
    return std::filesystem::path("snapshots") / io::path_named(commit);
  }
  return snapshots.empty() ? std::filesystem::path()
                           : std::filesystem::path("snapshots") / io::path_named(*snapshots.begin());
}

/// Words for the Hugging Face cache, given at its root, one model's folder or inside that; else empty.
[[nodiscard]] inline std::string cache_kind(const std::filesystem::path& folder) {
  const auto advice = [](const std::filesystem::path& snapshot) {
    return core::concatenate("is part of the Hugging Face cache; give a snapshot in it: ",
                             io::printable(io::path_text(snapshot), 4096));
  };
  const auto whole = folder.has_filename() ? folder : folder.parent_path();  // "folder/"
  const bool inside = whole.filename() == "snapshots" || whole.filename() == "blobs";
  for (const auto& model : {whole, inside ? whole.parent_path() : whole}) {
    if (const auto snapshot = cached_snapshot(model); !snapshot.empty()) {
      return advice(model / snapshot);
    }
  }
  for (const auto& hub : {whole, whole / "hub"}) {
    for (const auto& name : names_in(hub)) {
      const auto model = hub / io::path_named(name);
      if (name.starts_with("models--") && !cached_snapshot(model).empty()) {
        return advice(model / cached_snapshot(model));
      }
    }
  }
  return "";
}

/// Words for a checkpoint that other programs write as a folder, by the names in it; else empty.
[[nodiscard]] inline std::string_view format_kind(const std::set<std::string>& names) {
  const auto any = [&names](auto matches) { return std::any_of(names.begin(), names.end(), matches); };
  if (any([](std::string_view n) {
        return n.starts_with("global_step") || n.ends_with("_model_states.pt") ||
               n.ends_with("_optim_states.pt");
      })) {
    return "is a checkpoint of DeepSpeed; only safetensors and GGUF are read";
  }
  if (names.contains("latest_checkpointed_iteration.txt") || names.contains("common.pt") ||
      any([](std::string_view n) { return n.starts_with("mp_rank_") || n.starts_with("iter_0"); })) {
    return "is a checkpoint of Megatron; only safetensors and GGUF are read, and examples/export_dcp writes "
           "the "
           "former from torch_dist";
  }
  if (names.contains(".metadata") || any([](std::string_view n) { return n.ends_with(".distcp"); })) {
    return "is a distributed checkpoint of PyTorch (DCP); only safetensors and GGUF are read, and "
           "examples/export_dcp writes the former from it";
  }
  if (names.contains("manifest.ocdbt") || names.contains("_CHECKPOINT_METADATA")) {
    return "is a checkpoint of Orbax; only safetensors and GGUF are read";
  }
  return any([](std::string_view n) { return n.ends_with(".ckpt.index") || n == "saved_model.pb"; })
             ? "is a checkpoint of TensorFlow; only safetensors and GGUF are read"
             : "";
}

/// "NAME is a GGUF file; …", of the largest file of a known kind; else empty.
[[nodiscard]] inline std::string largest_kind(const std::filesystem::path& folder,
                                              const std::set<std::string>& names) {
  std::pair<std::uintmax_t, std::string> largest;
  for (const auto& name : names) {
    std::error_code error;
    const auto path = folder / io::path_named(name);
    const auto size = std::filesystem::file_size(path, error);
    const auto kind = weights_kind(start_of(path));
    if (!kind.empty() && !error && (largest.second.empty() || size > largest.first)) {
      largest = {size, core::concatenate(io::printable(name), " ", kind)};
    }
  }
  return largest.second;
}

/// "its folder NAME does", of the folders up to two levels down that hold safetensors files; else empty.
[[nodiscard]] inline std::string holder_below(const std::filesystem::path& folder,
                                              const std::set<std::string>& names) {
  const auto holds = [](const std::filesystem::path& path) {
    const auto inside = names_in(path);
    return std::any_of(inside.begin(), inside.end(),
                       [](std::string_view n) { return !n.starts_with('.') && n.ends_with(".safetensors"); });
  };
  std::vector<std::string> holders;
  for (const auto& name : names) {
    const auto path = folder / io::path_named(name);
    if (name.starts_with('.') || !is_folder(path)) {
      continue;
    }
    if (holds(path)) {
      holders.push_back(name);
    }
    for (const auto& below : names_in(path)) {
      if (holds(path / io::path_named(below))) {
        holders.push_back(core::concatenate(name, "/", below));
      }
    }
  }
  if (holders.empty()) {
    return "";
  }
  const std::string more =
      holders.size() > 1 ? core::concatenate(" (and ", holders.size() - 1, " more)") : "";
  return core::concatenate("its folder ", io::printable(holders.front()), " does", more);
}

/// "NAME is a download that was not finished"; else empty.
[[nodiscard]] inline std::string unfinished_download(const std::set<std::string>& names) {
  for (const std::string_view name : names) {
    for (const std::string_view end : {".incomplete", ".part", ".aria2", ".crdownload", ".download"}) {
      if (name.ends_with(end)) {
        return core::concatenate(io::printable(name), " is a download that was not finished");
      }
    }
  }
  return "";
}

}  // namespace detail

/// Why a folder without *.safetensors files is no checkpoint, to follow its name in a refusal: what its files
/// are, or where else to look.
[[nodiscard]] inline std::string foreign_folder(const std::filesystem::path& folder) {
  const auto names = detail::names_in(folder);
  for (const auto& whole : {detail::cache_kind(folder), std::string(detail::format_kind(names))}) {
    if (!whole.empty()) {
      return whole;
    }
  }
  const std::string nothing = "holds no *.safetensors file";
  for (const auto& hint : {detail::holder_below(folder, names), detail::largest_kind(folder, names),
                           detail::unfinished_download(names)}) {
    if (!hint.empty()) {
      return core::concatenate(nothing, "; ", hint);
    }
  }
  return names.empty() ? nothing + ": it is empty" : nothing;
}

MPIROUTER_END
