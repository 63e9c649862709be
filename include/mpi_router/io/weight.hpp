// A weight of a model as its layers use it: floating point as it is stored, or packed and decoded.
#pragma once

#include <mpi_router/io/packed/any_matrix.hpp>
#include <mpi_router/io/path_names.hpp>
#include <mpi_router/io/stored_tensor.hpp>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

MPIROUTER_BEGIN

/// Part of a tensor: `each` numbers from `first` on, as many again after each `step`.
struct strided_part {
  index_t first = 0;
  index_t each = 0;
  index_t step = 0;

  /// The place in the tensor of the part's number i.
  [[nodiscard]] constexpr index_t place_of(index_t i) const noexcept {
    return first + i / each * step + i % each;
  }
};

/// A tensor of real numbers under the name that the model's code gives it, with dots between its parts,
/// whatever is between them in the file. `X.weight` may be one stored tensor, or codes and scales of several
/// (`X.weight_packed`, `X.weight_scale`, …) that only together are the weight. It points into the mapped
/// files and must not outlive their checkpoint.
class weight {
 public:
  /// As it is stored; its type need not be floating point, then problem() says so.
  explicit weight(const stored_tensor& stored)
      : file_(&stored.file()),
        name_(detail::dotted(stored.name())),
        shape_(stored.shape().begin(), stored.shape().end()),
        stored_as_(to_string(stored.type())),
        plain_(&stored) {}

  /// A part of one, under a name of its own: of a layer that lies in one tensor with others.
  weight(const weight& whole, std::string name, std::vector<index_t> shape, const strided_part& part)
      : file_(whole.file_),
        name_(std::move(name)),
        shape_(std::move(shape)),
        stored_as_(whole.stored_as_),
        plain_(whole.plain_),
        part_(part),
        problem_(whole.problem_) {}

  /// Packed: a matrix of the last two axes of `shape` for each index of those before.
  weight(const std::filesystem::path& file, std::string name, std::vector<index_t> shape,
         std::vector<packed::any_matrix> matrices)
      : file_(&file),
        name_(detail::dotted(std::move(name))),
        shape_(std::move(shape)),
        stored_as_(matrices.empty() ? "nothing" : matrices.front().description()),
        matrices_(std::move(matrices)) {}

  /// Packed in a way that cannot be decoded: say why with set_problem.
  weight(const std::filesystem::path& file, std::string name, std::vector<index_t> shape,
         std::string_view stored_as)
      : file_(&file),
        name_(detail::dotted(std::move(name))),
        shape_(std::move(shape)),
        stored_as_(stored_as) {}

  [[nodiscard]] const std::filesystem::path& file() const noexcept { return *file_; }
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  /// Extents of the numbers, slowest axis first: of the decoded ones, if it is packed.
  [[nodiscard]] std::span<const index_t> shape() const noexcept { return shape_; }
  [[nodiscard]] index_t rank() const noexcept { return static_cast<index_t>(shape_.size()); }
  /// "BF16", or how it is packed: "FP8 E4M3, 128×128 blocks".
  [[nodiscard]] const std::string& stored_as() const noexcept { return stored_as_; }
  [[nodiscard]] bool is_packed() const noexcept { return !matrices_.empty(); }
  /// The tensor that it is, or whose type it has; null where it is packed.
  [[nodiscard]] const stored_tensor* plain() const noexcept { return plain_; }
  /// Where its numbers lie in plain(), where they are but a part of that.
  [[nodiscard]] const std::optional<strided_part>& part() const noexcept { return part_; }
  /// Whether groups of numbers along the last axis share a scale, as every such packing has it along the
  /// inputs of a layer: then the last axis is D. Blocks of FP8, rows of int8, the blocks of bitsandbytes,
  /// which know no axes, tell nothing; of what was turned after it was packed, see is_grouped_by_rows.
  [[nodiscard]] bool is_grouped() const {
    return std::ranges::any_of(matrices_, [](const auto& m) {
      return !std::holds_alternative<packed::fp8_matrix>(m.format()) &&
             !std::holds_alternative<packed::int8_matrix>(m.format()) &&
             !std::holds_alternative<packed::turned_fp4_matrix>(m.format()) &&
             !std::holds_alternative<packed::nf4_matrix>(m.format());
    });
  }
  /// Whether such groups were turned: then the last axis but one is D.
  [[nodiscard]] bool is_grouped_by_rows() const {
    return std::ranges::any_of(matrices_, [](const auto& m) {
      return std::holds_alternative<packed::turned_fp4_matrix>(m.format());
    });
  }
  /// Whether ggml stored it, whose matrices have the inputs of a layer along the last axis: then that is D.
  [[nodiscard]] bool is_of_ggml() const noexcept { return of_ggml_; }
  void set_of_ggml() noexcept { of_ggml_ = true; }
  [[nodiscard]] bool is_mxfp4() const {
    return std::ranges::any_of(matrices_, [](const auto& m) {
      const auto* fp4 = std::get_if<packed::fp4_matrix>(&m.format());
      return fp4 != nullptr && fp4->group() == 32 && fp4->scales().type() == packed::scale_type::e8m0;
    });
  }
  /// Whether it is NVFP4, not turned since.
  [[nodiscard]] bool is_nvfp4() const {
    return std::ranges::any_of(matrices_, [](const auto& m) {
      const auto* fp4 = std::get_if<packed::fp4_matrix>(&m.format());
      return fp4 != nullptr && fp4->scales().type() == packed::scale_type::e4m3;
    });
  }
  /// Why its numbers cannot be had; empty if they can.
  [[nodiscard]] const std::string& problem() const noexcept { return problem_; }
  void set_problem(std::string reason) { problem_ = std::move(reason); }

  /// The extent of the last axis; 1 of a single number.
  [[nodiscard]] index_t cols() const noexcept { return shape_.empty() ? 1 : shape_.back(); }
  /// The product of all other extents; 0 where there are no numbers.
  [[nodiscard]] index_t rows() const noexcept {
    const index_t size = element_count(shape_);
    return size == 0 ? 0 : size / cols();
  }

  /// Decodes rows [first, first + count) of a packed weight, row-major, computed in S (see
  /// packed::any_matrix). O(count · cols()); no allocation. Throws usage_error for rows that are not there,
  /// or where nothing is packed.
  template <Accumulator S>
  void decode(index_t first, index_t count, S* out) const {
    core::expect(is_packed() && first >= 0 && count >= 0 && first + count <= rows(), "weight '", name_,
                 "': rows ", first, " to ", first + count, " of ", rows(), " asked of ", stored_as_);
    const index_t each = rows() / static_cast<index_t>(matrices_.size());
    while (count > 0) {
      const auto& matrix = matrices_[static_cast<std::size_t>(first / each)];
      const index_t begin = first % each;
      const index_t here = std::min(count, each - begin);
      if (here == each) {
        matrix.load_all(out);  // some formats are stored by columns
      } else {
        for (index_t i = 0; i < here; ++i) {
          matrix.load_row(begin + i, out + i * cols());
        }
      }
      out += here * cols();
      first += here;
      count -= here;
    }
  }

  /// The packed matrix that has rows [first, first + count), and where in it they begin; null where nothing
  /// is packed, or no one matrix has them all.
  [[nodiscard]] std::pair<const packed::any_matrix*, index_t> matrix_with(index_t first,
                                                                          index_t count) const noexcept {
    const index_t each = is_packed() ? rows() / static_cast<index_t>(matrices_.size()) : 0;
    if (each == 0 || first < 0 || count < 0 || first >= rows() || first % each + count > each) {
      return {nullptr, 0};
    }
    return {&matrices_[static_cast<std::size_t>(first / each)], first % each};
  }

  /// Throws file_error with a message that names the file and this weight.
  template <class... Parts>
  [[noreturn]] void fail(const Parts&... reason) const {
    io::tensor_failure(*file_, name_, reason...);
  }

 private:
  const std::filesystem::path* file_;
  std::string name_;
  std::vector<index_t> shape_;
  std::string stored_as_;
  const stored_tensor* plain_ = nullptr;
  std::optional<strided_part> part_;
  std::vector<packed::any_matrix> matrices_;
  std::string problem_;
  bool of_ggml_ = false;
};

MPIROUTER_END
