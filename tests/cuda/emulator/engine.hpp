// The engine of the emulated GPU: runs one launch of a kernel, thread by thread, on one thread of the CPU.
//
// Every CUDA thread of a block is a fiber, a stack of its own that is switched to and from. A fiber runs until it
// waits for others (a barrier, a warp collective, a bulk copy), so between two waits it runs alone; the order in
// which ready fibers run is the schedule. The engine is strict on purpose: what the hardware leaves undefined, or
// punishes only now and then, is a fault here, with the kernel, block, thread and source line in the message.
//
//   shared memory      poisoned for every block, ends at a page that cannot be touched
//   copies             asynchronous ones land only at the wait that covers them; until then there is poison
//   warp collectives   lanes that disagree on operation or mask, or call alone, are faults
//   __syncthreads      threads that meet at different lines are a fault; so is a wait that nobody can end
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <source_location>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace emu {

/// The calling source line, as a default argument: `Line line = EMU_LINE`.
using Line = std::source_location;
#define EMU_LINE std::source_location::current()

struct Extent {
    unsigned x = 1, y = 1, z = 1;
};

// ---- Kernels by name --------------------------------------------------------------------------------------------

/// One __global__ function: how to call it with the array of argument addresses that cuLaunchKernel takes.
struct Kernel {
    const char* name;
    void (*function)();
    void (*call)(void (*function)(), void** arguments);
    std::vector<size_t> sizes; ///< bytes of each parameter
    unsigned max_threads;      ///< of a block, from its __launch_bounds__
};

std::vector<Kernel>& kernels();

/// Puts a kernel on the list when the library is loaded.
struct Registrar {
    template <class... A> Registrar(const char* name, unsigned max_threads, void (*function)(A...)) {
        static_assert((std::is_trivially_copyable_v<A> && ...), "parameters travel as bytes");
        kernels().push_back({name, (void (*)())function, [](void (*f)(), void** arguments) {
                                 call_with<A...>(f, arguments, std::index_sequence_for<A...>());
                             }, {sizeof(A)...}, max_threads});
    }

private:
    template <class... A, size_t... I>
    static void call_with(void (*f)(), [[maybe_unused]] void** arguments, std::index_sequence<I...>) {
        ((void (*)(A...))f)(*(std::remove_cv_t<A>*)arguments[I]...);
    }
};

// ---- Schedules -----------------------------------------------------------------------------------------------------

/// In which order ready threads run: all in turn (Forward, Reverse, Random), or one warp as far as it gets before
/// the next (Greedy...: the largest distance between warps). Blocks go in the same order.
enum class Order { Forward, Reverse, Random, Greedy, GreedyReverse, GreedyRandom };

struct Settings {
    Order order = Order::Forward;
    uint64_t seed = 1;
    unsigned char poison = 0xA5; ///< what fresh memory holds
    bool survive = false;        ///< a fault ends the launch with an error instead of the process
};
extern Settings settings;

/// Runs a launch to its end. False after a fault (only where settings.survive).
bool launch(const Kernel& kernel, Extent grid, Extent block, size_t shared_bytes, void** arguments);

// ---- What the emulated instructions need ------------------------------------------------------------------------------

/// Says what is wrong, where, and ends the launch.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));
/// What the last fault said that settings.survive let pass.
const std::string& last_fault();

/// Lanes of one warp that exchange words: one warp collective.
struct Meeting {
    uint32_t mask = 0, arrived = 0;
    int unread = 0;
    const char* operation = nullptr;
    Line line{};
    bool open = false;
    uint64_t words[32][4];
    alignas(32) int32_t product[16][8]; ///< what the last lane to come computed for all
};

struct Pending { ///< one cp.async
    void* to;
    const void* from;
    bool in_range;
    int group;
};

/// A product that a lane has issued and not yet waited for.
struct PendingProduct {
    int* c;
    int count;           ///< of c
    bool first;          ///< no earlier one waits for the same registers: `before` holds what was in them
    int before[128];
    int16_t a[2][32];    ///< rows g and g + 8
    const uint32_t* fragment; ///< where the lane's own part of A is
    uint32_t words[4];   ///< what was in it
    const unsigned char* tile;
    int step;
    int group;
};

enum class State : uint8_t { Ready, Waiting, Ended };

struct Fiber {
    void* context = nullptr;
    Extent index{};
    int number = 0, warp = 0, lane = 0;
    State state = State::Ended;
    bool late = false; ///< has given way: runs when no other can
    const char* waits = "";
    Line line{};
    int barrier = -1;
    int result = 0; ///< what a reducing barrier gave
    uint64_t* memory_barrier = nullptr; ///< waited for
    std::vector<Pending> pending;
    int group = 0;
    std::vector<PendingProduct> products;
    int product_group = 0;
    bool fenced = false; ///< since the last wait for products
};

struct Warp {
    uint32_t alive = 0;
    std::array<Meeting, 32> meetings; ///< at most one per lane is unfinished or unread
};

struct Barrier {
    unsigned arrived = 0, expected = 0; ///< expected 0: all threads that live
    int sum = 0;
    Line line{};
};

struct Machine;
/// The machine of the launch that this thread of the CPU runs.
extern thread_local Machine* machine __attribute__((tls_model("initial-exec")));
extern thread_local Fiber* fiber __attribute__((tls_model("initial-exec")));

Extent block_index();
Extent block_extent();
Extent grid_extent();

/// Lets other threads run until `fiber` is made ready again.
void wait(const char* what, Line line);
/// Lets all others run first, as far as they get: a card may do so.
void give_way();
/// The value that all threads of the block gave, added up.
int barrier(int number, unsigned expected, int value, const char* operation, Line line);

/// All lanes of `mask` come with four words; `finish` runs once, when all are there. Give the meeting back with
/// leave() after reading it.
Meeting& meet(uint32_t mask, const char* operation, Line line, const uint64_t (&words)[4],
              void (*finish)(Meeting&) = nullptr);
void leave(Meeting& meeting);

unsigned char* dynamic_shared();
/// Whether these bytes are shared memory of this block.
bool is_shared(const void* address, size_t bytes);

/// The place of one BL_SHARED_ARRAY.
struct SharedSite {
    size_t bytes;
    void* enter(); ///< its memory in this block, poisoned at the first call
};

void copy_async(void* to, const void* from, bool in_range);
void copy_wait(int left);

} // namespace emu
