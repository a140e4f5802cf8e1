#include "machine.hpp"

#include <cfenv>
#include <cstdarg>
#include <csignal>
#include <mutex>

namespace emu {

Settings settings;
thread_local Machine* machine;
thread_local Fiber* fiber;

std::vector<Kernel>& kernels() {
    static std::vector<Kernel> list;
    return list;
}

// ---- Switching between stacks --------------------------------------------------------------------------------------

#if !defined(EMU_UCONTEXT)
// Saves the registers that a called function must keep, and its stack pointer in *from; then the same backwards.
asm(R"(
    .text
    .type emu_switch,@function
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch,.-emu_switch
)");
extern "C" void emu_switch(void** from, void* to) __asm__("emu_switch");

static void* fresh_context(char* stack_end, int, void (*entry)()) {
    // As if `entry` had been called: the stack pointer is a multiple of 16 less 8 at its first instruction.
    uint64_t* top = (uint64_t*)stack_end;
    *--top = 0;
    *--top = (uint64_t)entry;
    for (int i = 0; i < 6; i++) *--top = 0;
    return top;
}
#else
static void emu_switch(void** from, void* to) { swapcontext((ucontext_t*)*from, (ucontext_t*)to); }
static void* fresh_context(char* stack_end, int number, void (*entry)()) {
    ucontext_t* context = &machine->contexts[number];
    getcontext(context);
    context->uc_stack.ss_sp = stack_end - STACK + PAGE;
    context->uc_stack.ss_size = STACK - PAGE;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

Extent block_index() { return machine->index; }
Extent block_extent() { return machine->block; }
Extent grid_extent() { return machine->grid; }
unsigned char* dynamic_shared() { return machine->shared; }

// ---- Faults --------------------------------------------------------------------------------------------------------------

/// Of the last fault that a launch survived.
static std::string message;
const std::string& last_fault() { return message; }

static std::string where() {
    Machine* m = machine;
    if (!m) return "emulated GPU: ";
    char text[400];
    int n = snprintf(text, sizeof text, "emulated GPU: kernel %s, block (%u,%u,%u)", m->kernel->name, m->index.x,
                     m->index.y, m->index.z);
    if (fiber)
        n += snprintf(text + n, sizeof text - n, ", thread (%u,%u,%u)", fiber->index.x, fiber->index.y, fiber->index.z);
    snprintf(text + n, sizeof text - n, ", schedule %d: ", (int)settings.order);
    return text;
}

[[noreturn]] static void end_launch(const std::string& text) {
    if (!settings.survive || !machine) {
        fprintf(stderr, "%s\n", text.c_str());
        abort();
    }
    message = text;
    machine->failed = true;
    siglongjmp(machine->escape, 1);
}

void fault(const char* format, ...) {
    char text[2000];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    end_launch(where() + text);
}

void Machine::deadlock() {
    std::string text;
    std::map<std::string, int> waits;
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        if (f.state == State::Waiting)
            waits[std::string(f.waits) + " at " + f.line.file_name() + ":" + std::to_string(f.line.line())]++;
    }
    for (auto& [what, count] : waits) text += "\n    " + std::to_string(count) + " in " + what;
    fiber = nullptr;
    fault("threads wait for one another for ever (%d of %d have ended):%s", threads - alive, threads, text.c_str());
}

static struct sigaction former_segv, former_bus;

/// A touch of memory that is not there, inside a kernel.
static void on_signal(int number, siginfo_t* info, void* context) {
    if (machine && fiber) {
        char text[200];
        snprintf(text, sizeof text, "touches memory that is not there: %p (last wait: %s, %s:%u)", info->si_addr,
                 fiber->waits, fiber->line.file_name(), fiber->line.line());
        end_launch(where() + text);
    }
    struct sigaction& former = number == SIGSEGV ? former_segv : former_bus;
    if (former.sa_flags & SA_SIGINFO && former.sa_sigaction) return former.sa_sigaction(number, info, context);
    signal(number, SIG_DFL);
}

/// Once for each thread of the CPU: the handler's own stack, since a kernel's may be what overflowed. One that the thread
/// has already may be too small to print on (Rust's is): the handler would fault in itself, again and again.
static void install_handlers() {
    static std::once_flag once;
    std::call_once(once, [] {
        struct sigaction action {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigaction(SIGSEGV, &action, &former_segv);
        sigaction(SIGBUS, &action, &former_bus);
    });
    constexpr size_t enough = 64 * 1024;
    stack_t present{};
    if (sigaltstack(nullptr, &present) == 0 && (present.ss_flags & SS_DISABLE || present.ss_size < enough)) {
        stack_t own{};
        own.ss_size = enough;
        own.ss_sp = malloc(own.ss_size);
        sigaltstack(&own, nullptr);
    }
}

// ---- Waiting -------------------------------------------------------------------------------------------------------------

void wait(const char* what, Line line) {
    Fiber* self = fiber;
    self->waits = what;
    self->line = line;
    self->state = State::Waiting;
    emu_switch(&self->context, machine->scheduler);
}

void give_way() {
    fiber->late = true;
    emu_switch(&fiber->context, machine->scheduler);
}

/// Lets a barrier's threads go when the last has come.
static void release(int number) {
    Machine* m = machine;
    Barrier& b = m->barriers[number];
    const unsigned expected = b.expected ? b.expected : (unsigned)m->alive;
    if (b.arrived == 0 || b.arrived < expected) return;
    if (b.arrived > expected) fault("more threads at barrier %d than it counts (%u)", number, expected);
    for (int i = 0; i < m->threads; i++) {
        Fiber& f = m->fibers[i];
        if (f.state == State::Waiting && f.barrier == number) {
            f.state = State::Ready;
            f.barrier = -1;
            f.result = b.sum;
        }
    }
    b = Barrier();
}

int barrier(int number, unsigned expected, int value, const char* operation, Line line) {
    Machine* m = machine;
    Barrier& b = m->barriers[number];
    if (b.arrived == 0) {
        b.expected = expected;
        b.line = line;
    } else if (b.expected != expected) {
        fault("threads disagree on how many barrier %d counts: %u and %u", number, b.expected, expected);
    } else if (number == 0 && b.line.line() != line.line()) {
        fault("%s at %s:%u meets one at %s:%u", operation, line.file_name(), line.line(), b.line.file_name(), b.line.line());
    }
    b.arrived++;
    b.sum += value;
    Fiber* self = fiber;
    self->barrier = number;
    self->state = State::Waiting;
    self->waits = operation;
    self->line = line;
    release(number);
    if (self->state == State::Waiting) emu_switch(&self->context, m->scheduler);
    return self->result;
}

Meeting& meet(uint32_t mask, const char* operation, Line line, const uint64_t (&words)[4], void (*finish)(Meeting&)) {
    Fiber* self = fiber;
    Warp& warp = machine->warps[self->warp];
    const uint32_t bit = 1u << self->lane;
    if (!(mask & bit)) fault("%s at %s:%u: the mask %08x lacks the calling lane", operation, line.file_name(), line.line(), mask);
    if (mask & ~warp.alive)
        fault("%s at %s:%u: the mask %08x names lanes that have ended (%08x live)", operation, line.file_name(), line.line(),
              mask, warp.alive);
    Meeting *mine = nullptr, *free = nullptr;
    for (Meeting& candidate : warp.meetings) {
        if (candidate.open && candidate.mask & mask) {
            mine = &candidate;
            break;
        }
        if (!candidate.open && candidate.unread == 0 && !free) free = &candidate;
        if (candidate.mask == 0) break; // never used: none behind it is
    }
    if (!mine) {
        if (!free) fault("more warp collectives are open than a warp has lanes");
        mine = free;
        mine->mask = mask;
        mine->arrived = 0;
        mine->operation = operation;
        mine->line = line;
        mine->open = true;
    } else if (mine->mask != mask || strcmp(mine->operation, operation) != 0) {
        fault("%s with mask %08x at %s:%u meets %s with mask %08x at %s:%u", operation, mask, line.file_name(), line.line(),
              mine->operation, mine->mask, mine->line.file_name(), mine->line.line());
    }
    for (int i = 0; i < 4; i++) mine->words[self->lane][i] = words[i];
    mine->arrived |= bit;
    if (mine->arrived != mask) {
        self->barrier = -1;
        wait(operation, line);
        return *mine;
    }
    mine->open = false;
    mine->unread = __builtin_popcount(mask);
    if (finish) finish(*mine);
    Fiber* lanes = &machine->fibers[(size_t)self->warp * 32];
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) lanes[i].state = State::Ready;
    return *mine;
}

void leave(Meeting& meeting) { meeting.unread--; }

// ---- Shared memory ----------------------------------------------------------------------------------------------------------

bool is_shared(const void* address, size_t bytes) {
    Machine* m = machine;
    const unsigned char* p = (const unsigned char*)address;
    if (p >= m->shared && p + bytes <= m->shared + m->shared_bytes) return true;
    for (auto& [site, memory] : m->sites)
        if (p >= memory.region->end() - site->bytes && p + bytes <= memory.region->end()) return true;
    return false;
}

void* SharedSite::enter() {
    SiteMemory& memory = machine->sites[this];
    if (!memory.region) memory.region = std::make_unique<Region>(bytes);
    unsigned char* start = memory.region->end() - (bytes + 15) / 16 * 16;
    if (memory.block != machine->serial) {
        memset(start, settings.poison, bytes);
        memory.block = machine->serial;
    }
    return start;
}

/// The dynamic part starts at a multiple of 128, so up to 127 bytes lie between its end and the guard page.
void Machine::check_shared_slack() {
    for (const unsigned char* p = shared + shared_bytes; p < dynamic.end(); p++)
        if (*p != settings.poison) {
            fiber = nullptr;
            fault("a byte %td past the end of dynamic shared memory (%zu bytes) was written", p - shared - shared_bytes,
                  shared_bytes);
        }
}

// ---- cp.async ---------------------------------------------------------------------------------------------------------------

void copy_async(void* to, const void* from, bool in_range) {
    if (((uintptr_t)to | (uintptr_t)from) & 15)
        fault("bl_copy_async: %p from %p: not multiples of 16", to, from);
    if (!is_shared(to, 16)) fault("bl_copy_async: %p is not shared memory of this block", to);
    memset(to, settings.poison, 16);
    fiber->pending.push_back({to, from, in_range, fiber->group});
}

void copy_wait(int left) {
    auto& list = fiber->pending;
    size_t kept = 0;
    for (Pending& p : list) {
        if (p.group >= fiber->group - left) {
            list[kept++] = p;
        } else if (p.in_range) {
            memcpy(p.to, p.from, 16);
        } else {
            memset(p.to, 0, 16);
        }
    }
    list.resize(kept);
}

// ---- Blocks -----------------------------------------------------------------------------------------------------------------

static void entry() {
    Machine* m = machine;
    m->kernel->call(m->kernel->function, m->arguments);
    Fiber* self = fiber;
    if (!self->pending.empty()) fault("the thread ends with %zu copies that it did not wait for", self->pending.size());
    if (!self->products.empty()) fault("the thread ends with products that it did not wait for");
    self->state = State::Ended;
    self->waits = "its end";
    m->alive--;
    m->warps[self->warp].alive &= ~(1u << self->lane);
    for (int i = 0; i < 16; i++)
        if (m->barriers[i].arrived && !m->barriers[i].expected) release(i);
    emu_switch(&self->context, m->scheduler);
    abort(); // an ended thread is never run
}

void Machine::run(Fiber& f) {
    fiber = &f;
    emu_switch(&scheduler, f.context);
    fiber = nullptr;
}

void Machine::start_block(uint64_t number) {
    serial++;
    memory_barriers.clear();
    index = {(unsigned)(number % grid.x), (unsigned)(number / grid.x % grid.y), (unsigned)(number / grid.x / grid.y)};
    memset(shared, settings.poison, dynamic.end() - shared);
    alive = threads;
    barriers.fill(Barrier());
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[i];
        f.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        f.number = i;
        f.warp = i / 32;
        f.lane = i % 32;
        f.state = State::Ready;
        f.waits = "nothing yet";
        f.line = {};
        f.barrier = -1;
        f.memory_barrier = nullptr;
        f.pending.clear();
        f.group = 0;
        f.products.clear();
        f.product_group = 0;
        f.fenced = false;
        f.late = false;
        f.context = fresh_context(stacks + STACK * (i + 1), i, entry);
        Warp& w = warps[f.warp];
        if (f.lane == 0) {
            w.alive = 0;
            for (Meeting& meeting : w.meetings) {
                meeting.open = false;
                meeting.unread = 0;
            }
        }
        w.alive |= 1u << f.lane;
    }
}

/// Runs each ready thread of [first, last) once. False if there was none.
bool Machine::pass(int first, int last, bool backwards, bool shuffled) {
    int order[MAX_THREADS];
    const int count = last - first;
    for (int i = 0; i < count; i++) order[i] = backwards ? last - 1 - i : first + i;
    if (shuffled)
        for (int i = count - 1; i > 0; i--) std::swap(order[i], order[draw(i + 1)]);
    bool any = false;
    for (int i = 0; i < count; i++) {
        Fiber& f = fibers[order[i]];
        if (f.state != State::Ready || f.late) continue;
        any = true;
        run(f);
    }
    return any;
}

/// Runs one of those that have given way. False if there was none.
bool Machine::late(bool backwards, bool shuffled) {
    const int start = shuffled ? draw(threads) : 0;
    for (int i = 0; i < threads; i++) {
        Fiber& f = fibers[backwards ? threads - 1 - i : (start + i) % threads];
        if (f.state != State::Ready || !f.late) continue;
        f.late = false;
        run(f);
        return true;
    }
    return false;
}

void Machine::run_block() {
    const Order order = settings.order;
    const bool backwards = order == Order::Reverse || order == Order::GreedyReverse;
    if (order < Order::Greedy) {
        while (alive)
            if (!pass(0, threads, backwards, order == Order::Random) && alive && !late(backwards, order == Order::Random))
                deadlock();
        return;
    }
    const int warps_used = (threads + 31) / 32;
    std::vector<int> list(warps_used);
    while (alive) {
        for (int i = 0; i < warps_used; i++) list[i] = backwards ? warps_used - 1 - i : i;
        if (order == Order::GreedyRandom)
            for (int i = warps_used - 1; i > 0; i--) std::swap(list[i], list[draw(i + 1)]);
        bool any = false;
        for (int w : list)
            while (pass(w * 32, std::min(threads, w * 32 + 32), backwards, order == Order::GreedyRandom)) any = true;
        if (!any && alive && !late(backwards, order == Order::GreedyRandom)) deadlock();
    }
}

bool launch(const Kernel& kernel, Extent grid, Extent block, size_t shared_bytes, void** arguments) {
    install_handlers();
    // Kept for the next launch of this thread of the CPU. A launch inside a launch gets one of its own.
    static thread_local std::unique_ptr<Machine> kept;
    std::unique_ptr<Machine> own = kept ? std::move(kept) : std::make_unique<Machine>();
    Machine* m = own.get();
    m->kernel = &kernel;
    m->arguments = arguments;
    m->grid = grid;
    m->block = block;
    m->threads = (int)(block.x * block.y * block.z);
    m->shared_bytes = shared_bytes;
    m->shared = m->dynamic.end() - (shared_bytes + 127) / 128 * 128;
    m->random = settings.seed * 0x9E3779B97F4A7C15ull + 1;
    m->failed = false;
    m->outer = machine;
    Fiber* outer_fiber = fiber;
    std::fenv_t environment;
    std::fegetenv(&environment);
    std::fesetenv(FE_DFL_ENV);
    machine = m;
    if (sigsetjmp(m->escape, 1) == 0) {
        const uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z;
        std::vector<uint64_t> order;
        if (settings.order == Order::Random || settings.order == Order::GreedyRandom) {
            order.resize(blocks);
            for (uint64_t i = 0; i < blocks; i++) order[i] = i;
            for (uint64_t i = blocks - 1; i > 0; i--) std::swap(order[i], order[m->draw((unsigned)i + 1)]);
        }
        const bool backwards = settings.order == Order::Reverse || settings.order == Order::GreedyReverse;
        for (uint64_t i = 0; i < blocks; i++) {
            m->start_block(!order.empty() ? order[i] : backwards ? blocks - 1 - i : i);
            m->run_block();
            m->check_shared_slack();
            check_memory_barriers();
        }
    }
    const bool fine = !m->failed;
    machine = m->outer;
    fiber = outer_fiber;
    std::fesetenv(&environment);
    kept = std::move(own);
    return fine;
}

} // namespace emu
