// The processes that mpirun starts together. Its MPI is the Message Passing Interface, which the rest of the
// project does not know.
#pragma once

#include <exception>
#include <optional>
#include <string>

namespace verify {

/// Another process said what is wrong.
class told_already : public std::exception {
 public:
  [[nodiscard]] const char* what() const noexcept override { return "another process failed"; }
};

/// All processes of a run, each a rank; the first reads and writes for all. One that was not started by
/// mpirun is alone, and then nothing here does anything, nor is MPI initialised.
///
/// A failure ends all of them, with status 2. Before start() it is told at the next settle(), so that one
/// that all share is said once. From there to finish() whoever fails ends the others. After that only the
/// first has something left to do.
class ranks {
 public:
  ranks() = default;
  ranks(const ranks&) = delete;
  ranks& operator=(const ranks&) = delete;
  ~ranks();  ///< leaves, when all do

  /// Joins the others. Throws input_error where mpirun started several and they cannot find each other, for
  /// each would do all the work and overwrite what the others write.
  void join();

  /// Whether mpirun, which makes any standard output look like a terminal, started this process.
  [[nodiscard]] static bool started_by_mpirun();

  [[nodiscard]] int rank() const noexcept { return rank_; }
  [[nodiscard]] int size() const noexcept { return size_; }
  [[nodiscard]] bool is_first() const noexcept { return rank_ == 0; }
  /// Threads for this one if all share their cores; 0, as many as there are, where it is alone or
  /// OMP_NUM_THREADS says how many.
  [[nodiscard]] int threads() const noexcept { return threads_; }

  /// Waits for all. Throws told_already if any of them fails instead.
  void settle() const;
  /// What the first says, for all.
  [[nodiscard]] std::string from_first(std::string text) const;
  void start() noexcept { phase_ = phase::work; }
  void finish() noexcept { phase_ = phase::end; }

  /// To the first, from any thread, one at a time. It may wait until that receives.
  void send(const std::string& line) const;
  /// What any of the others sent; nothing if there is nothing yet. For one thread of the first.
  [[nodiscard]] std::optional<std::string> receive() const;

  /// Says what is wrong and sees to it that all end; the exit status.
  [[nodiscard]] int fail(const std::string& message) const;

 private:
  [[nodiscard]] bool settle_with(const std::string& problem) const;
  static void end_all();

  enum class phase { preparation, work, end };

  int rank_ = 0;
  int size_ = 1;
  int threads_ = 0;
  bool joined_ = false;
  phase phase_ = phase::preparation;
};

}  // namespace verify
