/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What gcc compiles in the sample gcc.parquet: containers and algorithms made by macros for many types,
 * so that a short file keeps the compiler's passes busy as an ordinary large one does.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MIX(x) ((uint64_t)(x) * UINT64_C(0x9e3779b97f4a7c15) ^ ((uint64_t)(x) >> 29))
#define LESS(a, b) ((a) < (b))

/* A growing array. */
#define VECTOR(name, type)                                                             \
	struct name##_vec {                                                            \
		type *data;                                                            \
		size_t len, room;                                                      \
	};                                                                             \
	int name##_push(struct name##_vec *v, type x)                                  \
	{                                                                              \
		if (v->len == v->room) {                                               \
			size_t room = v->room ? v->room + v->room / 2 + 1 : 8;         \
			type *data = realloc(v->data, room * sizeof(*data));           \
			if (!data)                                                     \
				return -ENOMEM;                                        \
			v->data = data;                                                \
			v->room = room;                                                \
		}                                                                      \
		v->data[v->len++] = x;                                                 \
		return 0;                                                              \
	}                                                                              \
	type name##_sum(const struct name##_vec *v)                                    \
	{                                                                              \
		type sum = 0;                                                          \
		for (size_t i = 0; i < v->len; i++)                                    \
			sum += v->data[i];                                             \
		return sum;                                                            \
	}                                                                              \
	void name##_reverse(struct name##_vec *v)                                      \
	{                                                                              \
		for (size_t i = 0, j = v->len; i + 1 < j; i++) {                       \
			type x = v->data[i];                                           \
			v->data[i] = v->data[--j];                                     \
			v->data[j] = x;                                                \
		}                                                                      \
	}

/* Sorting: insertion for short runs, heap sort for the rest; and binary search. */
#define SORT(name, type)                                                               \
	static void name##_insertion(type *a, size_t n)                                \
	{                                                                              \
		for (size_t i = 1; i < n; i++) {                                       \
			type x = a[i];                                                 \
			size_t j = i;                                                  \
			for (; j && LESS(x, a[j - 1]); j--)                            \
				a[j] = a[j - 1];                                       \
			a[j] = x;                                                      \
		}                                                                      \
	}                                                                              \
	static void name##_sift(type *a, size_t at, size_t n)                          \
	{                                                                              \
		type x = a[at];                                                        \
		for (size_t child; (child = 2 * at + 1) < n; at = child) {             \
			if (child + 1 < n && LESS(a[child], a[child + 1]))             \
				child++;                                               \
			if (!LESS(x, a[child]))                                        \
				break;                                                 \
			a[at] = a[child];                                              \
		}                                                                      \
		a[at] = x;                                                             \
	}                                                                              \
	void name##_sort(type *a, size_t n)                                            \
	{                                                                              \
		if (n < 24) {                                                          \
			name##_insertion(a, n);                                        \
			return;                                                        \
		}                                                                      \
		for (size_t i = n / 2; i-- > 0;)                                       \
			name##_sift(a, i, n);                                          \
		while (n-- > 1) {                                                      \
			type x = a[0];                                                 \
			a[0] = a[n];                                                   \
			a[n] = x;                                                      \
			name##_sift(a, 0, n);                                          \
		}                                                                      \
	}                                                                              \
	ptrdiff_t name##_search(const type *a, size_t n, type x)                       \
	{                                                                              \
		size_t low = 0, high = n;                                              \
		while (low < high) {                                                   \
			size_t mid = low + (high - low) / 2;                           \
			if (LESS(a[mid], x))                                           \
				low = mid + 1;                                         \
			else                                                           \
				high = mid;                                            \
		}                                                                      \
		return low < n && a[low] == x ? (ptrdiff_t)low : -1;                   \
	}

/* A hash table with open addressing. */
#define TABLE(name, type)                                                              \
	struct name##_table {                                                          \
		type *keys;                                                            \
		uint32_t *values;                                                      \
		unsigned char *used;                                                   \
		size_t len, room;                                                      \
	};                                                                             \
	static size_t name##_slot(const struct name##_table *t, type key)              \
	{                                                                              \
		size_t at = MIX(key) & (t->room - 1);                                  \
		while (t->used[at] && t->keys[at] != key)                              \
			at = (at + 1) & (t->room - 1);                                 \
		return at;                                                             \
	}                                                                              \
	int name##_put(struct name##_table *t, type key, uint32_t value)               \
	{                                                                              \
		if (4 * (t->len + 1) > 3 * t->room) {                                  \
			struct name##_table big = { .room = t->room ? 2 * t->room : 16 }; \
			big.keys = calloc(big.room, sizeof(*big.keys));                \
			big.values = calloc(big.room, sizeof(*big.values));            \
			big.used = calloc(big.room, 1);                                \
			if (!big.keys || !big.values || !big.used) {                   \
				free(big.keys);                                        \
				free(big.values);                                      \
				free(big.used);                                        \
				return -ENOMEM;                                        \
			}                                                              \
			for (size_t i = 0; i < t->room; i++)                           \
				if (t->used[i])                                        \
					name##_put(&big, t->keys[i], t->values[i]);    \
			free(t->keys);                                                 \
			free(t->values);                                               \
			free(t->used);                                                 \
			*t = big;                                                      \
		}                                                                      \
		size_t at = name##_slot(t, key);                                       \
		t->len += !t->used[at];                                                \
		t->used[at] = 1;                                                       \
		t->keys[at] = key;                                                     \
		t->values[at] = value;                                                 \
		return 0;                                                              \
	}                                                                              \
	bool name##_get(const struct name##_table *t, type key, uint32_t *value)       \
	{                                                                              \
		size_t at = t->room ? name##_slot(t, key) : 0;                         \
		if (!t->room || !t->used[at])                                          \
			return false;                                                  \
		*value = t->values[at];                                                \
		return true;                                                           \
	}

/* A search tree that rotates what it finds to the root. */
#define TREE(name, type)                                                               \
	struct name##_node {                                                           \
		struct name##_node *left, *right;                                      \
		type key;                                                              \
		uint32_t count;                                                        \
	};                                                                             \
	struct name##_node *name##_splay(struct name##_node *root, type key)           \
	{                                                                              \
		struct name##_node side = { 0 }, *low = &side, *high = &side, *n;      \
		if (!root)                                                             \
			return NULL;                                                   \
		for (;;) {                                                             \
			if (LESS(key, root->key)) {                                    \
				if (root->left && LESS(key, root->left->key)) {        \
					n = root->left;                                \
					root->left = n->right;                         \
					n->right = root;                               \
					root = n;                                      \
				}                                                      \
				if (!root->left)                                       \
					break;                                         \
				high->left = root;                                     \
				high = root;                                           \
				root = root->left;                                     \
			} else if (LESS(root->key, key)) {                             \
				if (root->right && LESS(root->right->key, key)) {      \
					n = root->right;                               \
					root->right = n->left;                         \
					n->left = root;                                \
					root = n;                                      \
				}                                                      \
				if (!root->right)                                      \
					break;                                         \
				low->right = root;                                     \
				low = root;                                            \
				root = root->right;                                    \
			} else {                                                       \
				break;                                                 \
			}                                                              \
		}                                                                      \
		low->right = root->left;                                               \
		high->left = root->right;                                              \
		root->left = side.right;                                               \
		root->right = side.left;                                               \
		return root;                                                           \
	}                                                                              \
	size_t name##_depth(const struct name##_node *n)                               \
	{                                                                              \
		if (!n)                                                                \
			return 0;                                                      \
		size_t left = name##_depth(n->left), right = name##_depth(n->right);   \
		return 1 + (left > right ? left : right);                              \
	}

/* Dense linear algebra, for the loop passes. */
#define MATRIX(name, type, rows)                                                       \
	void name##_multiply(type c[rows][rows], type a[rows][rows], type b[rows][rows]) \
	{                                                                              \
		for (int i = 0; i < rows; i++)                                         \
			for (int j = 0; j < rows; j++) {                               \
				type sum = 0;                                          \
				for (int k = 0; k < rows; k++)                         \
					sum += a[i][k] * b[k][j];                      \
				c[i][j] = sum;                                         \
			}                                                              \
	}                                                                              \
	type name##_trace(type a[rows][rows])                                          \
	{                                                                              \
		type sum = 0;                                                          \
		for (int i = 0; i < rows; i++)                                         \
			sum += a[i][i];                                                \
		return sum;                                                            \
	}                                                                              \
	void name##_smooth(type out[rows][rows], type in[rows][rows])                  \
	{                                                                              \
		for (int i = 1; i < rows - 1; i++)                                     \
			for (int j = 1; j < rows - 1; j++)                             \
				out[i][j] = (in[i - 1][j] + in[i + 1][j] + in[i][j - 1] + \
					     in[i][j + 1] + 4 * in[i][j]) / 8;         \
	}

#define ALL(name, type, rows) \
	VECTOR(name, type)    \
	SORT(name, type)      \
	TABLE(name, type)     \
	TREE(name, type)      \
	MATRIX(name, type, rows)

#define WIDTHS(p, q)                    \
	ALL(p##_u8_##q, uint8_t, 16)    \
	ALL(p##_u16_##q, uint16_t, 24)  \
	ALL(p##_i32_##q, int32_t, 32)   \
	ALL(p##_u64_##q, uint64_t, 40)  \
	ALL(p##_f32_##q, float, 48)     \
	ALL(p##_f64_##q, double, 64)

WIDTHS(first, a)
WIDTHS(first, b)
WIDTHS(second, a)
WIDTHS(second, b)
