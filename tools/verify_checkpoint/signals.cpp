#include "signals.hpp"

#include <mpi_router/io/file_mapped_at.hpp>
#include <mpi_router/io/unfinished.hpp>

#include <unistd.h>

#include <array>
#include <csignal>
#include <cstring>
#include <string_view>

namespace verify {

namespace {

// Handlers do nothing but what is async-signal-safe. SA_RESETHAND, which is how Windows always does it, makes
// the next such signal end the program, and one that is raised inside a handler comes when that returns.

void end_by(int number) {
  mpi_router::remove_unfinished();
  std::raise(number);
}

#ifndef _WIN32
void write_raw(std::string_view words) {
  static_cast<void>(!::write(STDERR_FILENO, words.data(), words.size()));
}

void lost_page(int number, siginfo_t* info, void*) {
  mpi_router::remove_unfinished();
  std::array<char, 4096> name{};
  const auto length = mpi_router::file_mapped_at(info->si_addr, name);
  if (length == 0) {
    ::raise(number);
    return;
  }
  write_raw(::isatty(STDERR_FILENO) != 0 ? "\r\033[K" : "");  // over the bar of progress
  write_raw("verify_checkpoint: ");
  write_raw({name.data(), length});
  write_raw(": became shorter while it was read, or cannot be read from its disk\n");
  ::_exit(2);
}

void handle(int number, struct sigaction action) {
  struct sigaction before{};
  if (::sigaction(number, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) {
    ::sigaction(number, &action, nullptr);
  }
}
#endif

}  // namespace

#ifdef _WIN32
void install_signal_handlers() {
  for (const int number : {SIGINT, SIGTERM}) {
    std::signal(number, end_by);
  }
}
#else
void install_signal_handlers() {
  struct sigaction action{};
  ::sigemptyset(&action.sa_mask);
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  action.sa_handler = end_by;
  for (const int number : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE}) {
    handle(number, action);
  }
  action.sa_handler = SIG_IGN;
  handle(SIGXFSZ, action);
  action.sa_flags = static_cast<int>(SA_RESETHAND | SA_SIGINFO);
  action.sa_sigaction = lost_page;
  handle(SIGBUS, action);
}
#endif

}  // namespace verify
