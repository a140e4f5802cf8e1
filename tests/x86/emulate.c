// The machine-near half of emulate.py: runs a static Linux program on Bochs' processor inside this process.
//
// The program's memory is this process's memory: an address of the program is the same address here, and
// the emulated page table maps it to itself. So a system call of the program is one of ours, with its own
// pointers, and memory that the program may not touch is memory that the host protects.
//
//     0x1000..0x4000       page table (1 GiB pages, each to itself), and the stub that `syscall` jumps to
//     64 GiB..320 GiB      all that the program has: image, heap, stack, what it maps; reserved, not committed
//
// `syscall` enters the stub, `wbinvd` calls `on_wbinvd` here, `sysretq` goes back.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ull
#define GIB (1ull << 30)
#define ARENA (64 * GIB)
#define ARENA_END (320 * GIB)
#define HEAP_LEN (16 * GIB)
#define STACK_LEN (256ull << 20)
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)
#define PML4 0x1000ull
#define PDPT 0x2000ull
#define STUB 0x3000ull

// The functions of bochscpu's C interface that are used here.
struct hooks {
  void *context;
  void (*reset)(void), (*hlt)(void), (*mwait)(void), (*branch_taken)(void), (*branch_not_taken)(void);
  void (*near_branch)(void), (*far_branch)(void), (*opcode)(void), (*interrupt)(void);
  void (*exception)(void *, uint32_t, uint32_t, uint32_t);
  void (*hw_interrupt)(void), (*tlb_cntrl)(void);
  void (*cache_cntrl)(void *, uint32_t, uint32_t);
  void (*prefetch_hint)(void), (*clflush)(void);
  void (*before_execution)(void), (*after_execution)(void), (*repeat_iteration)(void), (*inp)(void), (*inp2)(void);
  void (*outp)(void), (*lin_access)(void), (*phy_access)(void), (*wrmsr)(void), (*vmexit)(void);
};
struct segment {
  uint8_t present;
  uint16_t selector;
  uint64_t base;
  uint32_t limit;
  uint16_t attributes;
};
typedef uint64_t get(void *cpu);
typedef void set(void *cpu, uint64_t value);
// General registers, in this order in all tables here.
enum { RAX, RDI, RSI, RDX, R10, R8, R9, RCX, R11, RBX, RBP, RSP, R12, R13, R14, R15, REGISTERS };
static const char *const names[REGISTERS] = {"rax", "rdi", "rsi", "rdx", "r10", "r8",  "r9",  "rcx",
                                             "r11", "rbx", "rbp", "rsp", "r12", "r13", "r14", "r15"};
static get *get_register[REGISTERS], *rip, *cr2;
static set *set_register[REGISTERS];
static void (*get_fs)(void *, struct segment *), (*set_fs)(void *, const struct segment *);
static void (*page_insert)(uint64_t, void *);
static void (*missing_page)(void (*)(uint64_t));
static void *(*cpu_from)(uint32_t);
static void (*cpu_run)(void *, struct hooks **);
static void *bochs, *cpu, *(*model)(void *);
static uint64_t heap, heap_end, mapped = ARENA;

static _Noreturn void die(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fflush(stdout);
  fprintf(stderr, "emulate: ");
  vfprintf(stderr, format, list);
  fprintf(stderr, "\n");
  va_end(list);
  _exit(125);
}

#if !__GLIBC_PREREQ(2, 38)
// What the package was built against.
unsigned long long __isoc23_strtoull(const char *s, char **end, int base) { return strtoull(s, end, base); }
int __isoc23_sscanf(const char *s, const char *format, ...) {
  va_list list;
  va_start(list, format);
  int n = vsscanf(s, format, list);
  va_end(list);
  return n;
}
#endif

// bochscpu always makes this model. Found before its own, it makes the wanted one.
void *_Z23create_corei3_cnl_cpuidP8BX_CPU_C(void *bochs_cpu) { return model(bochs_cpu); }

static void *symbol(const char *name) {
  void *found = dlsym(bochs, name);
  if (found == NULL) die("bochscpu has no %s", name);
  return found;
}

// Before the first processor is made. `library`: the extension module, already loaded.
void emulate_open(const char *library, const char *name) {
  char plain[128], full[160];
  bochs = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  if (bochs == NULL) die("%s", dlerror());
  snprintf(plain, sizeof plain, "create_%s_cpuid", name);
  snprintf(full, sizeof full, "_Z%zu%sP8BX_CPU_C", strlen(plain), plain);
  *(void **)&model = symbol(full);
#define FIND(variable, name) *(void **)&variable = symbol("bochscpu_" name)
  for (int i = 0; i < REGISTERS; i++) {
    snprintf(full, sizeof full, "bochscpu_cpu_%s", names[i]);
    *(void **)&get_register[i] = symbol(full);
    snprintf(full, sizeof full, "bochscpu_cpu_set_%s", names[i]);
    *(void **)&set_register[i] = symbol(full);
  }
  FIND(rip, "cpu_rip"), FIND(cr2, "cpu_cr2"), FIND(get_fs, "cpu_fs"), FIND(set_fs, "cpu_set_fs");
  FIND(page_insert, "mem_page_insert"), FIND(missing_page, "mem_missing_page");
  FIND(cpu_from, "cpu_from"), FIND(cpu_run, "cpu_run");
}

static void on_missing(uint64_t address) {
  address &= ~(PAGE - 1);
  if (address < ARENA || address >= ARENA_END)
    die("access to 0x%llx, which the program has not, at 0x%llx", (unsigned long long)address,
        (unsigned long long)rip(cpu));
  page_insert(address, (void *)address);
}

static void on_exception(void *context, uint32_t id, uint32_t vector, uint32_t code) {
  (void)context, (void)id;
  die("exception %u (code %u) at 0x%llx, cr2 0x%llx", vector, code, (unsigned long long)rip(cpu),
      (unsigned long long)cr2(cpu));
}

static void on_signal(int number, siginfo_t *info, void *context) {
  (void)context;
  die("signal %d: access to %p at 0x%llx", number, info->si_addr, (unsigned long long)rip(cpu));
}

static uint64_t map(uint64_t len, int prot, int flags, int fd, off_t offset) {
  len = (len + PAGE - 1) & ~(PAGE - 1);
  if (len == 0 || len > ARENA_END - mapped) return (uint64_t)-ENOMEM;
  void *at = mmap((void *)mapped, len, prot, (flags & ~MAP_HUGETLB) | MAP_FIXED, fd, offset);
  if (at == MAP_FAILED) return (uint64_t)-errno;
  mapped += len;
  return (uint64_t)at;
}

static uint64_t argument(int which) { return get_register[which](cpu); }

static uint64_t forward(uint64_t number) {
  long result = syscall((long)number, argument(RDI), argument(RSI), argument(RDX), argument(R10), argument(R8),
                        argument(R9));
  return result == -1 ? (uint64_t)-errno : (uint64_t)result;
}

static void set_thread_pointer(uint64_t address) {
  struct segment fs;
  get_fs(cpu, &fs);
  fs.base = address;
  set_fs(cpu, &fs);
}

// Threads take turns of their whole lives: a new one runs at once, to its end, while its parent stands here.
static struct parent {
  uint64_t registers[REGISTERS], thread_pointer, thread;
  uint32_t *cleared;  // the word that the end of the new one clears
} parents[16];
static int depth;

static uint64_t begin_thread(uint64_t flags, uint64_t stack, uint32_t *id, uint32_t *cleared, uint64_t pointer) {
  static uint32_t last = 1000;
  if (!(flags & CLONE_THREAD) || !(flags & CLONE_SETTLS) || depth == 16) return (uint64_t)-ENOSYS;
  struct parent *parent = &parents[depth++];
  struct segment fs;
  get_fs(cpu, &fs);
  for (int i = 0; i < REGISTERS; i++) parent->registers[i] = argument(i);
  parent->thread_pointer = fs.base, parent->thread = ++last;
  parent->cleared = flags & CLONE_CHILD_CLEARTID ? cleared : NULL;
  if (flags & CLONE_PARENT_SETTID) *id = last;
  set_thread_pointer(pointer);
  set_register[RSP](cpu, stack);
  return 0;
}

static uint64_t end_thread(int status) {
  if (depth == 0) {
    fflush(stdout);
    _exit(status);
  }
  const struct parent *parent = &parents[--depth];
  if (parent->cleared != NULL) *parent->cleared = 0;
  for (int i = 0; i < REGISTERS; i++) set_register[i](cpu, parent->registers[i]);
  set_thread_pointer(parent->thread_pointer);
  return parent->thread;
}

static uint64_t system_call(uint64_t number) {
  uint64_t a = argument(RDI), b = argument(RSI), c = argument(RDX), d = argument(R10);
  switch (number) {
    case SYS_exit: return end_thread((int)a);
    case SYS_exit_group: fflush(stdout); _exit((int)a);
    case SYS_clone: return begin_thread(a, b, (uint32_t *)c, (uint32_t *)d, argument(R8));
    case SYS_futex:
      if ((b & 127) % 9 == FUTEX_WAIT && c == *(uint32_t *)a) die("a thread waits for one that does not run");
      return forward(number);
    case SYS_tgkill:
    case SYS_tkill:
    case SYS_kill: die("the program ends itself by signal %d", (int)(number == SYS_tgkill ? c : b));
    case SYS_brk:
      if (a >= heap && a <= heap + HEAP_LEN) heap_end = a;
      return heap_end;
    case SYS_arch_prctl:
      if (a != 0x1002) return (uint64_t)-EINVAL;  // ARCH_SET_FS
      set_thread_pointer(b);
      return 0;
    case SYS_mmap:
      if (d & MAP_FIXED) {
        if (a < ARENA || b > ARENA_END - a) return (uint64_t)-ENOMEM;
        return forward(number);
      }
      return map(b, (int)c, (int)d, (int)argument(R8), (off_t)argument(R9));
    case SYS_munmap:
      if (a < ARENA || b > ARENA_END - a) return (uint64_t)-EINVAL;
      return mmap((void *)a, b, PROT_NONE, ANONYMOUS | MAP_FIXED, -1, 0) ==
                     MAP_FAILED
                 ? (uint64_t)-errno
                 : 0;
    case SYS_sched_getaffinity:  // one processor: there are no threads
      if (b < 8) return (uint64_t)-EINVAL;
      memset((void *)c, 0, 8);
      *(char *)c = 1;
      return 8;
    case SYS_rt_sigaction:
    case SYS_rt_sigprocmask:
    case SYS_sigaltstack:
    case SYS_prctl:
    case SYS_set_robust_list: return 0;
    case SYS_set_tid_address: return (uint64_t)getpid();
    case SYS_rseq:
    case SYS_clone3:
    case SYS_mremap: return (uint64_t)-ENOSYS;
    case SYS_read:
    case SYS_write:
    case SYS_readv:
    case SYS_writev:
    case SYS_pread64:
    case SYS_pwrite64:
    case SYS_open:
    case SYS_openat:
    case SYS_close:
    case SYS_lseek:
    case SYS_stat:
    case SYS_fstat:
    case SYS_newfstatat:
    case SYS_statx:
    case SYS_access:
    case SYS_ftruncate:
    case SYS_unlink:
    case SYS_mkdir:
    case SYS_rename:
    case SYS_readlink:
    case SYS_readlinkat:
    case SYS_getcwd:
    case SYS_getdents64:
    case SYS_fcntl:
    case SYS_ioctl:
    case SYS_poll:
    case SYS_madvise:
    case SYS_mprotect:
    case SYS_getpid:
    case SYS_gettid:
    case SYS_getuid:
    case SYS_getrandom:
    case SYS_clock_gettime:
    case SYS_clock_nanosleep:
    case SYS_prlimit64:
    case SYS_sysinfo:
    case SYS_sched_yield:
    case SYS_uname: return forward(number);
    default:
      fprintf(stderr, "emulate: system call %llu is not known here\n", (unsigned long long)number);
      return (uint64_t)-ENOSYS;
  }
}

static void on_wbinvd(void *context, uint32_t id, uint32_t what) {
  (void)context, (void)id, (void)what;
  set_register[RAX](cpu, system_call(argument(RAX)));
}

// Maps the loadable segments of a position-independent program or dynamic linker; gives where it lies.
// Writes the path of its dynamic linker to `linker`, if it wants one.
static uint64_t load(const char *path, Elf64_Ehdr *header, uint64_t *program_headers, char linker[256]) {
  int fd = open(path, O_RDONLY);
  struct stat status;
  if (fd < 0 || fstat(fd, &status) != 0) die("%s: %s", path, strerror(errno));
  const uint8_t *file = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (file == MAP_FAILED) die("%s: %s", path, strerror(errno));
  close(fd);
  memcpy(header, file, sizeof *header);
  if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0 || header->e_machine != EM_X86_64 ||
      header->e_type != ET_DYN)
    die("%s is no position-independent x86-64 program", path);
  const Elf64_Phdr *segments = (const void *)(file + header->e_phoff);
  uint64_t len = 0;
  for (int i = 0; i < header->e_phnum; i++) {
    const uint64_t end = segments[i].p_vaddr + segments[i].p_memsz;
    if (segments[i].p_type == PT_LOAD && end > len) len = end;
    if (segments[i].p_type == PT_INTERP) snprintf(linker, 256, "%s", file + segments[i].p_offset);
  }
  const uint64_t image = map(len, PROT_READ | PROT_WRITE, ANONYMOUS, -1, 0);
  if (image >= ARENA_END) die("no memory for %s", path);
  for (int i = 0; i < header->e_phnum; i++) {
    if (segments[i].p_type != PT_LOAD) continue;
    memcpy((void *)(image + segments[i].p_vaddr), file + segments[i].p_offset, segments[i].p_filesz);
    if (segments[i].p_offset == 0) *program_headers = image + header->e_phoff;
  }
  munmap((void *)file, (size_t)status.st_size);
  return image;
}

// Loads a program and lays out its stack; gives the entry point in start[0], the stack in start[1], the page
// table in start[2] and the stub in start[3].
void emulate_load(const char *path, int argc, char **argv, char **envp, uint64_t *start) {
  if (mmap((void *)ARENA, ARENA_END - ARENA, PROT_NONE, ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
      (void *)ARENA)
    die("addresses of the program are taken: %s", strerror(errno));
  Elf64_Ehdr header, linker_header;
  uint64_t program_headers = 0, unused = 0;
  char linker[256] = "", none[256] = "";
  const uint64_t image = load(path, &header, &program_headers, linker);
  const uint64_t base = linker[0] ? load(linker, &linker_header, &unused, none) : 0;
  heap = heap_end = map(HEAP_LEN, PROT_READ | PROT_WRITE, ANONYMOUS, -1, 0);
  const uint64_t stack = map(STACK_LEN, PROT_READ | PROT_WRITE, ANONYMOUS, -1, 0);
  if (heap >= ARENA_END || stack >= ARENA_END) die("no memory for %s", path);

  // Strings, then from an address that is a multiple of 16: argc, argv, 0, envp, 0, auxiliary vector.
  uint64_t top = stack + STACK_LEN - 16;
  int envc = 0;
  while (envp[envc] != NULL) envc++;
  uint64_t *strings = calloc((size_t)(argc + envc + 1), sizeof *strings);
  if (strings == NULL) die("no memory");
  for (int i = 0; i < argc + envc; i++) {
    const char *text = i < argc ? argv[i] : envp[i - argc];
    top -= strlen(text) + 1;
    strings[i] = top;
    strcpy((char *)top, text);
  }
  const uint64_t vector[][2] = {{AT_PHDR, program_headers},
                                {AT_PHENT, header.e_phentsize},
                                {AT_PHNUM, header.e_phnum},
                                {AT_PAGESZ, PAGE},
                                {AT_BASE, base},
                                {AT_ENTRY, image + header.e_entry},
                                {AT_RANDOM, stack}, // the lowest bytes of the stack serve as well
                                {AT_SECURE, 0},
                                {AT_NULL, 0}};
  top = (top & ~15ull) - sizeof vector - 8 * (uint64_t)((argc + envc + 3 + 1) / 2 * 2);
  uint64_t *at = (uint64_t *)top;
  *at++ = (uint64_t)argc;
  for (int i = 0; i < argc + envc; i++) {
    if (i == argc) *at++ = 0;
    *at++ = strings[i];
  }
  if (envc == 0) *at++ = 0;
  *at++ = 0;
  memcpy(at, vector, sizeof vector);
  free(strings);

  static uint64_t pages[3][512] __attribute__((aligned(4096)));
  pages[0][0] = PDPT | 7;
  for (uint64_t i = 0; i < 512; i++) pages[1][i] = i * GIB | 0x87;  // present, writable, of the user, 1 GiB
  memcpy(pages[2], "\x0f\x09\x48\x0f\x07", 5);                     // wbinvd; sysretq
  for (uint64_t i = 0; i < 3; i++) page_insert(PML4 + i * PAGE, pages[i]);
  start[0] = linker[0] ? base + linker_header.e_entry : image + header.e_entry;
  start[1] = top, start[2] = PML4, start[3] = STUB;
}

// After the state is set: runs until the program ends, which ends this process.
_Noreturn void emulate_run(void) {
  struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  cpu = cpu_from(0);
  missing_page(on_missing);
  struct hooks hooks = {.exception = on_exception, .cache_cntrl = on_wbinvd}, *chain[] = {&hooks, NULL};
  cpu_run(cpu, chain);
  die("the processor stopped at 0x%llx", (unsigned long long)rip(cpu));
}
