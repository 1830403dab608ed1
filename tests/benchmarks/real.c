// SPDX-License-Identifier: GPL-2.0-only
/*
 * real - time one memory operation on the kernel that this machine runs
 *
 * usage: real OPERATION HINT STEP_KIB MIB
 *
 * OPERATION is one of operations[] below, on MIB of anonymous memory aligned to 2M. HINT is what
 * madvise() is told of it first: none, huge or nohuge. STEP_KIB is the distance of the bytes that a
 * touch goes over, that is the size of the folios to be had. Prints "NANOSECONDS FAULTS": of the
 * operation alone, of this process alone. It changes no setting of the machine.
 *
 * One run is one measurement, so that whoever starts it can do something else in between; the operation
 * is done once before, untimed, as caches may be full of that. The names and what is timed are those of
 * scripts/operations.py.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	ALIGN = 2 << 20,
	CALLS = 1000,
};

static char *all, *memory;
static size_t size, step, page;
static int advice = -1;
static uint64_t began, took;
static long faults_before, faults;
static int held[2];
static pid_t child;

static void need(int fine, const char *what)
{
	if (!fine) {
		perror(what);
		exit(1);
	}
}

static void start(void)
{
	struct rusage usage;
	struct timespec t;

	getrusage(RUSAGE_SELF, &usage);
	faults_before = usage.ru_minflt;
	clock_gettime(CLOCK_MONOTONIC, &t);
	began = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void stop(void)
{
	struct rusage usage;
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	took = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec - began;
	getrusage(RUSAGE_SELF, &usage);
	faults = usage.ru_minflt - faults_before;
}

static void map(void)
{
	all = mmap(NULL, size + ALIGN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(all != MAP_FAILED, "mmap");
	memory = (char *)(((uintptr_t)all + ALIGN - 1) & ~(uintptr_t)(ALIGN - 1));
	memory = mmap(memory, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED,
		      -1, 0);
	need(memory != MAP_FAILED, "mmap");
	/* A kernel without huge pages knows neither advice, and needs no telling to leave them. */
	need(advice < 0 || !madvise(memory, size, advice) ||
		     (advice == MADV_NOHUGEPAGE && errno == EINVAL),
	     "madvise");
}

static void write_each(size_t distance)
{
	for (size_t at = 0; at < size; at += distance)
		*(volatile char *)(memory + at) = 1;
}

static void read_each(size_t distance)
{
	for (size_t at = 0; at < size; at += distance)
		(void)*(volatile char *)(memory + at);
}

/* A child that lives until it is told to end. */
static void fork_held(void)
{
	char byte;

	need(!pipe(held), "pipe");
	child = fork();
	need(child >= 0, "fork");
	if (!child) {
		close(held[1]);
		if (read(held[0], &byte, 1) < 0)
			_exit(1);
		_exit(0);
	}
	close(held[0]);
}

static void end_child(void)
{
	close(held[1]);
	need(waitpid(child, NULL, 0) == child, "waitpid");
}

static void first_touch(void)
{
	map();
	start();
	write_each(step);
	stop();
}

/* Each page, so that the faults tell how large the folios are. */
static void probe(void)
{
	map();
	start();
	write_each(page);
	stop();
}

static void first_read(void)
{
	map();
	start();
	read_each(page);
	stop();
}

static void unmap(void)
{
	map();
	write_each(step);
	start();
	need(!munmap(memory, size), "munmap");
	stop();
}

static void fork_alone(void)
{
	map();
	write_each(step);
	start();
	child = fork();
	need(child >= 0, "fork");
	if (!child)
		_exit(0);
	stop();
	need(waitpid(child, NULL, 0) == child, "waitpid");
}

static void exit_of_child(void)
{
	map();
	write_each(step);
	fork_held();
	start();
	end_child();
	stop();
}

static void copy_on_write(void)
{
	map();
	write_each(step);
	fork_held();
	start();
	write_each(page);
	stop();
	end_child();
}

static void protect(void)
{
	map();
	write_each(step);
	start();
	need(!mprotect(memory, size, PROT_READ), "mprotect");
	stop();
}

static void map_and_unmap(void)
{
	start();
	for (int i = 0; i < CALLS; i++) {
		void *at = mmap(NULL, step, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
				0);

		need(at != MAP_FAILED && !munmap(at, step), "mmap");
	}
	stop();
}

static const struct {
	const char *name;
	void (*run)(void);
} operations[] = {
	{"probe", probe},
	{"first_touch", first_touch},
	{"first_read", first_read},
	{"munmap", unmap},
	{"fork", fork_alone},
	{"exit", exit_of_child},
	{"copy_on_write", copy_on_write},
	{"mprotect", protect},
	{"mmap_munmap", map_and_unmap},
};

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	if (!strcmp(argv[2], "huge"))
		advice = MADV_HUGEPAGE;
	else if (!strcmp(argv[2], "nohuge"))
		advice = MADV_NOHUGEPAGE;
	step = strtoul(argv[3], NULL, 10) << 10;
	size = strtoul(argv[4], NULL, 10) << 20;
	page = (size_t)sysconf(_SC_PAGESIZE);
	if (!step || !size)
		return 2;
	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
		if (strcmp(argv[1], operations[i].name))
			continue;
		operations[i].run();
		need(!all || !munmap(all, size + ALIGN), "munmap");
		operations[i].run();
		printf("%llu %ld\n", (unsigned long long)took, faults);
		return 0;
	}
	return 2;
}
