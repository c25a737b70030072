// Runs a kernel's grid on one CPU thread: blocks one after another, each block's threads as fibers.
//
// A fiber runs threads to their end, one after another, until one waits; that one keeps the fiber, and another fiber
// goes on with the rest. So a kernel without barriers runs in one fiber, as a plain loop.
//
// order: 0 threads and blocks forward, 1 backward, more: shuffled with that seed, anew after every barrier. What
// depends on the order gives other bits: a missing barrier, blocks that read each other's results.
//
// Before each block all shared memory is filled with 0xff bytes, NaN in every format. What waits wrongly (some threads
// of a block at a barrier, others at another; a warp operation that names lanes that are not there) ends the launch.
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

namespace {

constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t PAGE_BYTES = 4096;
constexpr size_t GUARD_BYTES = 256;  // behind dynamic shared memory
constexpr int POISON = 0xff;
constexpr int WARP = 32;

struct Triple {
  unsigned x, y, z;
  size_t count() const { return size_t(x) * y * z; }
};
struct State {
  Triple thread, block, block_size, grid_size;
  unsigned char* dynamic;
};
enum class At { start, barrier, warp, end };
struct Fiber {
  ucontext_t context;
  jmp_buf saved;
  bool entered;
};
struct Thread {
  Fiber* fiber;
  At at;
  int line;
  unsigned mask;
  bool vote;
  unsigned votes;
  unsigned char bank;  // which of two slots the lane's latest value is in: a lane may be one exchange ahead
  unsigned char slot[2][16];
};

State* state;
void (*kernel)(void**);
void** arguments;
std::vector<Thread> threads;
std::vector<size_t> order;
size_t started, running;
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;
Fiber* active;
jmp_buf scheduler;
char trouble[256];
std::mt19937 random_order;

void fail(const char* format, ...) {
  if (trouble[0]) return;
  va_list words;
  va_start(words, format);
  std::vsnprintf(trouble, sizeof trouble, format, words);
  va_end(words);
}

void take_up(size_t thread) {
  running = thread;
  const Triple& size = state->block_size;
  state->thread = {unsigned(thread % size.x), unsigned(thread / size.x % size.y), unsigned(thread / size.x / size.y)};
}

void park() {
  if (!_setjmp(active->saved)) _longjmp(scheduler, 1);
}

void fiber_main() {
  for (;;) {
    while (started < order.size()) {
      take_up(order[started++]);
      threads[running].fiber = active;
      kernel(arguments);
      threads[running].at = At::end;
    }
    idle.push_back(active);
    park();
  }
}

void enter(Fiber* fiber) {
  active = fiber;
  if (_setjmp(scheduler)) return;
  if (fiber->entered) _longjmp(fiber->saved, 1);
  fiber->entered = true;
  setcontext(&fiber->context);
}

Fiber* new_fiber() {
  void* stack = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stack == MAP_FAILED) return nullptr;
  mprotect(stack, PAGE_BYTES, PROT_NONE);  // a kernel that outgrows its stack ends here, not in another's
  fibers.push_back(std::make_unique<Fiber>());
  Fiber* fiber = fibers.back().get();
  getcontext(&fiber->context);
  fiber->context.uc_stack.ss_sp = stack;
  fiber->context.uc_stack.ss_size = STACK_BYTES;
  fiber->context.uc_link = nullptr;
  makecontext(&fiber->context, fiber_main, 0);
  return fiber;
}

// After trouble the waiting fibers hold half-run threads: they begin anew.
void renew_fibers() {
  idle.clear();
  for (auto& fiber : fibers) {
    fiber->entered = false;
    makecontext(&fiber->context, fiber_main, 0);
    idle.push_back(fiber.get());
  }
}

void wait_at(At at, int line, unsigned mask) {
  Thread& own = threads[running];
  own.at = at;
  own.line = line;
  own.mask = mask;
  park();
}

void barrier(int line) { wait_at(At::barrier, line, 0); }

bool exchange(unsigned mask, int line, const void* value, void* received, int bytes, int source) {
  const size_t own = running, first = own / WARP * WARP;
  Thread& me = threads[own];
  me.bank ^= 1;
  std::memcpy(me.slot[me.bank], value, bytes);
  wait_at(At::warp, line, mask);
  const bool there = source >= 0 && source < WARP && (mask >> source & 1) && first + source < threads.size();
  if (there)
    std::memcpy(received, threads[first + source].slot[threads[own].bank], bytes);
  else
    std::memset(received, POISON, bytes);
  return there;
}

unsigned ballot(unsigned mask, int line, bool vote) {
  threads[running].vote = vote;
  wait_at(At::warp, line, mask);
  return threads[running].votes;
}

// Warp operations that every lane they name has reached: those lanes may go on.
void complete_warps(std::vector<size_t>& ready) {
  for (size_t first = 0; first < threads.size(); first += WARP) {
    const unsigned lanes = unsigned(std::min<size_t>(WARP, threads.size() - first));
    unsigned seen = 0;
    for (unsigned lane = 0; lane < lanes; lane++) {
      const Thread& thread = threads[first + lane];
      if (thread.at != At::warp || (seen >> lane & 1)) continue;
      if (!(thread.mask >> lane & 1)) return fail("a lane takes part in a warp operation whose mask leaves it out");
      bool complete = true;
      unsigned votes = 0;
      for (unsigned other = 0; other < WARP; other++) {
        if (!(thread.mask >> other & 1)) continue;
        if (other >= lanes || threads[first + other].at == At::end)
          return fail("a warp operation names lane %u, which is not there or has ended", other);
        const Thread& partner = threads[first + other];
        complete &= partner.at == At::warp && partner.mask == thread.mask && partner.line == thread.line;
        votes |= unsigned(partner.vote) << other;
      }
      if (!complete) continue;
      seen |= thread.mask;  // the others that it names need no look of their own
      for (unsigned other = 0; other < lanes; other++) {
        if (!(thread.mask >> other & 1)) continue;
        threads[first + other].votes = votes;
        ready.push_back(first + other);
      }
    }
  }
}

// Threads that may go on; none when the block has ended or is in trouble.
std::vector<size_t> next_threads() {
  std::vector<size_t> ready;
  complete_warps(ready);
  if (trouble[0] || !ready.empty()) return ready;
  const Thread* first = nullptr;
  for (size_t i = 0; i < threads.size(); i++) {
    const Thread& thread = threads[i];
    if (thread.at == At::end) continue;
    if (!first) first = &thread;
    if (thread.at == At::warp) {
      fail("threads of a warp wait at different operations: one at a warp operation, others elsewhere");
      return {};
    }
    if (thread.line != first->line) {
      fail("threads of one block wait at different barriers, lines %d and %d", first->line, thread.line);
      return {};
    }
    ready.push_back(i);
  }
  return ready;
}

// `indices` come in rising order, but for those of warps that split.
void arrange(std::vector<size_t>& indices, unsigned how) {
  if (how == 1) std::reverse(indices.begin(), indices.end());
  if (how > 1) std::shuffle(indices.begin(), indices.end(), random_order);
}

void run_block(unsigned how) {
  for (auto& thread : threads) thread.at = At::start;
  for (size_t i = 0; i < order.size(); i++) order[i] = i;
  arrange(order, how);
  started = 0;
  while (started < order.size()) {
    Fiber* fiber;
    if (idle.empty()) {
      fiber = new_fiber();
      if (!fiber) return fail("no memory for another fiber");
    } else {
      fiber = idle.back();
      idle.pop_back();
    }
    enter(fiber);
  }
  for (;;) {
    std::vector<size_t> ready = next_threads();
    if (ready.empty()) return;
    arrange(ready, how);
    for (size_t thread : ready) {
      take_up(thread);
      enter(threads[thread].fiber);
    }
  }
}

struct Found {
  uintptr_t marker;
  void* block;
  size_t bytes;
};

int find_block(dl_phdr_info* info, size_t, void* data) {
  Found& found = *static_cast<Found*>(data);
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const auto& segment = info->dlpi_phdr[i];
    const uintptr_t start = uintptr_t(info->dlpi_tls_data);
    if (segment.p_type == PT_TLS && start && found.marker >= start && found.marker < start + segment.p_memsz) {
      found.block = info->dlpi_tls_data;
      found.bytes = segment.p_memsz;
      return 1;
    }
  }
  return 0;
}

struct Runtime {
  void (*barrier)(int);
  bool (*exchange)(unsigned, int, const void*, void*, int, int);
  unsigned (*ballot)(unsigned, int, bool);
};

}  // namespace

extern "C" const Runtime* shim_runtime() {
  static const Runtime runtime = {barrier, exchange, ballot};
  return &runtime;
}

// Runs the grid; what went wrong in a sentence, or null. `marker` is an address in the module's thread-local block.
extern "C" const char* shim_launch(void* module_state, void (*call)(void**), void** values, const unsigned* grid,
                                   const unsigned* block, size_t shared_bytes, unsigned how, void* marker) {
  state = static_cast<State*>(module_state);
  kernel = call;
  arguments = values;
  state->grid_size = {grid[0], grid[1], grid[2]};
  state->block_size = {block[0], block[1], block[2]};
  trouble[0] = 0;
  random_order.seed(how);
  const size_t count = state->block_size.count();
  threads.assign(count, Thread{});
  order.resize(count);

  Found shared{uintptr_t(marker), nullptr, 0};
  dl_iterate_phdr(find_block, &shared);
  static std::vector<unsigned char> room;
  room.resize(shared_bytes + GUARD_BYTES + 128);
  unsigned char* dynamic = reinterpret_cast<unsigned char*>((uintptr_t(room.data()) + 127) & ~uintptr_t(127));
  state->dynamic = dynamic;

  const size_t blocks = state->grid_size.count();
  std::vector<size_t> turn(how > 1 ? blocks : 0);
  for (size_t i = 0; i < turn.size(); i++) turn[i] = i;
  if (how > 1) std::shuffle(turn.begin(), turn.end(), random_order);
  for (size_t i = 0; i < blocks && !trouble[0]; i++) {
    const size_t number = how == 0 ? i : how == 1 ? blocks - 1 - i : turn[i];
    state->block = {unsigned(number % grid[0]), unsigned(number / grid[0] % grid[1]),
                    unsigned(number / grid[0] / grid[1])};
    std::memset(dynamic, POISON, shared_bytes + GUARD_BYTES);
    if (shared.block) std::memset(shared.block, POISON, shared.bytes);
    run_block(how);
    for (size_t j = 0; j < GUARD_BYTES; j++)
      if (dynamic[shared_bytes + j] != POISON) fail("a block writes beyond its dynamic shared memory");
  }
  if (trouble[0]) renew_fibers();
  return trouble[0] ? trouble : nullptr;
}
