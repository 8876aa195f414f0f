// A workspace in a forked child: the same records, no wait for threads that are not there, and nothing freed that the
// parent's threads were working in.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "batch.h"

namespace {

// work() in a child, which a minute without an end kills.
template <class Work>
void in_a_child(Work work) {
  const pid_t child = fork();
  EXPECT(child >= 0);
  if (child == 0) {
    signal(SIGALRM, SIG_DFL);
    alarm(60);
    work();
    _exit(0);
  }
  int status = -1;
  EXPECT(waitpid(child, &status, 0) == child);
  if (WIFSIGNALED(status)) std::fprintf(stderr, "the child was killed by signal %d\n", WTERMSIG(status));
  EXPECT(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

}  // namespace

int main() {
  Batch batch(6, 5, 24, 10, 10);
  batch.want(2, 100, 100, true, true);
  EXPECT(batch.localize(Workspace(1)) == WGAP_OK);
  const std::string expected = batch.written();
  const auto right = [&](wgap_workspace* workspace) {
    batch.want(2, 100, 100, true, true);
    return batch.localize(workspace) == WGAP_OK && batch.written() == expected;
  };
  wgap_workspace* idle = nullptr;
  EXPECT(wgap_workspace_create(3, nullptr, &idle, nullptr) == WGAP_OK);
  EXPECT(right(idle));

  in_a_child([&] {
    for (int i = 0; i < 3; ++i) EXPECT(right(idle));
    in_a_child([&] {  // and a child's child
      EXPECT(right(idle));
      wgap_workspace_destroy(idle);
    });
    EXPECT(right(idle));
    wgap_workspace_destroy(idle);
  });
  in_a_child([&] { wgap_workspace_destroy(idle); });  // never used there
  EXPECT(right(idle));

  // While another thread is at work in it.
  wgap_workspace* busy = nullptr;
  EXPECT(wgap_workspace_create(3, nullptr, &busy, nullptr) == WGAP_OK);
  std::atomic<bool> stop{false};
  std::atomic<int> rounds{0};
  std::thread worker([&] {
    Batch other(6, 5, 24, 10, 10);
    other.want(2, 200, 200);
    while (!stop) {
      const wgap_status status = other.localize(busy);
      EXPECT(status == WGAP_OK || status == WGAP_BUSY);  // the main thread may come in between two calls
      ++rounds;
    }
  });
  int met = 0;
  for (int i = 0; i < 20; ++i) {
    const int before = rounds;
    while (rounds == before) std::this_thread::yield();
    usleep(static_cast<useconds_t>(100 * (i % 5)));
    met += batch.localize(busy) == WGAP_BUSY;  // nearly always: the worker does nothing else
    in_a_child([&] {
      EXPECT(right(busy));
      EXPECT(right(busy));
      wgap_workspace_destroy(busy);
    });
  }
  stop = true;
  worker.join();
  EXPECT(met > 0);
  EXPECT(right(busy));  // the parent goes on
  wgap_workspace_destroy(busy);
  wgap_workspace_destroy(idle);
  return 0;
}
