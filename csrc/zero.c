// SPDX-License-Identifier: GPL-2.0-only
/*
 * Zeroing and copying physical memory. The Python twins are in mm/ranges.py.
 *
 * There are several methods, and which is the fastest depends on the host's CPU and on the size. Boot
 * measures those that the CPU has and writes its choice into k->method (virtmm/methods.py), as the kernel
 * patches in its alternatives; all zeroes there is libc. The result of all is the same.
 */
#include <string.h>

#include "core.h"

/* Sizes are whole pages, places are page aligned, and the two sides of a copy do not overlap. */
struct method {
	const char *name;
	void (*clear)(void *to, u64 size);
	void (*copy)(void *to, const void *from, u64 size);
	int past_caches;
};

static void libc_clear(void *to, u64 size)
{
	memset(to, 0, size);
}

static void libc_copy(void *to, const void *from, u64 size)
{
	memcpy(to, from, size);
}

/* The barrier keeps the compiler from seeing a memset or memcpy in the loop. */
#define barrier() __asm__ volatile("" ::: "memory")

#define VECTOR_METHOD(name, bytes, attributes)                                   \
	typedef u64 name##_t __attribute__((vector_size(bytes), may_alias));     \
	attributes static void name##_clear(void *to, u64 size)                  \
	{                                                                        \
		name##_t *p = to, *end = p + size / (bytes);                     \
                                                                                 \
		for (; p < end; p += 4) {                                        \
			p[0] = p[1] = p[2] = p[3] = (name##_t){0};               \
			barrier();                                               \
		}                                                                \
	}                                                                        \
	attributes static void name##_copy(void *to, const void *from, u64 size) \
	{                                                                        \
		name##_t *p = to, *end = p + size / (bytes);                     \
		const name##_t *q = from;                                        \
                                                                                 \
		for (; p < end; p += 4, q += 4) {                                \
			name##_t a = q[0], b = q[1], c = q[2], d = q[3];         \
                                                                                 \
			p[0] = a;                                                \
			p[1] = b;                                                \
			p[2] = c;                                                \
			p[3] = d;                                                \
			barrier();                                               \
		}                                                                \
	}

VECTOR_METHOD(vector, 16, )

#ifdef __x86_64__
#include <immintrin.h>

#define WITH(features) __attribute__((target(features)))

VECTOR_METHOD(avx2, 32, WITH("avx2"))
VECTOR_METHOD(avx512, 64, WITH("avx512f"))

static void string_clear(void *to, u64 size)
{
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(0) : "memory");
}

static void string_copy(void *to, const void *from, u64 size)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
}

/* Non-temporal stores go past the caches, in whole lines. */
static void stream_clear(void *to, u64 size)
{
	__m128i *p = to, *end = p + size / sizeof(*p);

	for (; p < end; p++)
		_mm_stream_si128(p, _mm_setzero_si128());
	_mm_sfence();
}

static void stream_copy(void *to, const void *from, u64 size)
{
	__m128i *p = to, *end = p + size / sizeof(*p);
	const __m128i *q = from;

	for (; p < end; p++, q++)
		_mm_stream_si128(p, _mm_load_si128(q));
	_mm_sfence();
}
#endif

#define METHOD(name, past_caches) {#name, name##_clear, name##_copy, past_caches}

/* Of methods that are equally fast boot takes the first. */
static const struct method methods[] = {
	METHOD(libc, 0),
#ifdef __x86_64__
	METHOD(string, 0), METHOD(avx512, 0), METHOD(avx2, 0),
#endif
	METHOD(vector, 0),
#ifdef __x86_64__
	METHOD(stream, 1),
#endif
};

/** method_name - name of a method; NULL behind the last */
const char *method_name(unsigned method)
{
	return method < sizeof(methods) / sizeof(*methods) ? methods[method].name : NULL;
}

/** method_usable - whether this CPU has what a method needs */
int method_usable(unsigned method)
{
	if (!method_name(method))
		return 0;
#ifdef __x86_64__
	void (*clear)(void *, u64) = methods[method].clear;

	if (clear == avx2_clear)
		return !!__builtin_cpu_supports("avx2");
	if (clear == avx512_clear)
		return !!__builtin_cpu_supports("avx512f");
#endif
	return 1;
}

/** method_run - zero, or with from copy, times blocks of size bytes that follow one another */
void method_run(unsigned method, void *to, const void *from, u64 size, u64 step, u64 times)
{
	for (u64 i = 0; i < times; i++) {
		if (from)
			methods[method].copy((char *)to + i * step, (const char *)from + i * step,
					     size);
		else
			methods[method].clear((char *)to + i * step, size);
	}
}

/* Sizes that are measured apart; METHOD_SIZES says which these are. */
static unsigned size_class(u64 nr)
{
	u64 size = nr << PAGE_SHIFT;

	return size < METHOD_SIZE_1 ? 0 : size < METHOD_SIZE_2 ? 1 : size < METHOD_SIZE_3 ? 2 : 3;
}

static void clear_run(struct vk *k, u64 pfn, u64 nr, unsigned class)
{
	if (nr)
		methods[k->method[METHOD_CLEAR + class]].clear(k->phys + (pfn << PAGE_WORDS_SHIFT),
							       nr << PAGE_SHIFT);
}

/** clear_pages - zero nr pages, the first one first */
void clear_pages(struct vk *k, u64 pfn, u64 nr)
{
	clear_run(k, pfn, nr, size_class(nr));
}

/**
 * clear_huge_page - zero nr pages, the faulting one last so that its lines are in the cache
 * @fault: index of the faulting page, below nr
 *
 * What lies behind the faulting page comes first, then upwards to it, in long runs; where these go past
 * the caches, the faulting page by itself. Below METHOD_SIZE_2 all of it stays in the nearest cache, and
 * one run is faster than two. The kernel of the series, and the Python twin, go page by page from both
 * sides in turn (v1 patch 1), which for a fault in the middle of a folio runs at two thirds of this
 * speed; the result is the same.
 */
void clear_huge_page(struct vk *k, u64 pfn, u64 nr, u64 fault)
{
	unsigned class = size_class(nr);
	const struct method *m = methods + k->method[METHOD_CLEAR + class];

	if (class < 2 && !m->past_caches) {
		m->clear(k->phys + (pfn << PAGE_WORDS_SHIFT), nr << PAGE_SHIFT);
		return;
	}
	clear_run(k, pfn + fault + 1, nr - fault - 1, class);
	clear_run(k, pfn, fault + !m->past_caches, class);
	if (m->past_caches)
		clear_run(k, pfn + fault, 1, size_class(1));
}

/** copy_pages - copy nr pages; the two runs do not overlap */
void copy_pages(struct vk *k, u64 to, u64 from, u64 nr)
{
	if (nr)
		methods[k->method[METHOD_COPY + size_class(nr)]].copy(
			k->phys + (to << PAGE_WORDS_SHIFT), k->phys + (from << PAGE_WORDS_SHIFT),
			nr << PAGE_SHIFT);
}
