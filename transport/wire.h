/*
 * cpr-wire, as seen from outside: how it is started and what it says. wire_start.h does this for the warden.
 *
 *	cpr-wire --role client|server [--expect HOST]
 *
 * It runs as a user of its own, without capabilities, and is given everything as descriptors:
 *
 *	3	control: SOCK_SEQPACKET to the warden. One struct wire_hello comes back when the handshake is over, then the
 *		wire closes it. When the warden closes it before that, the wire gives up.
 *	4	the connected TCP socket
 *	5 6 7	ca.pem, this host's certificate, its key: open for reading
 *	8 9	link: up_mem, down_mem
 *	10 11	link: up_data, up_space
 *	12 13	link: down_data, down_space
 *	14	link: wire_end
 *
 * It ends when the connection ends (last words on 14, see link.h), when every copy of link's worker_end is closed (it
 * sends first what was committed), and with its parent. Exit status: 0 after an orderly end, 1 after a fault that it
 * reported, 2 after one that it could not report.
 */
#ifndef TRANSPORT_WIRE_H
#define TRANSPORT_WIRE_H

#include "fault.h"

enum wire_fd {
	WIRE_FD_CONTROL = 3,
	WIRE_FD_SOCKET,
	WIRE_FD_CA,
	WIRE_FD_CERT,
	WIRE_FD_KEY,
	WIRE_FD_UP_MEM,
	WIRE_FD_DOWN_MEM,
	WIRE_FD_UP_DATA,
	WIRE_FD_UP_SPACE,
	WIRE_FD_DOWN_DATA,
	WIRE_FD_DOWN_SPACE,
	WIRE_FD_LINK,
	WIRE_FD_END
};

#define WIRE_HANDSHAKE_MS 10000
#define WIRE_PEER_MAX	  256

/* A plain structure, so that the warden, which is root, has nothing to parse. */
struct wire_hello {
	uint32_t size; /* of this structure: both programs are of one build */
	uint32_t up;   /* 1: peer is set; 0: fault is set */
	char peer[WIRE_PEER_MAX];
	struct fault fault;
};

/* cpr-wire's main, after its arguments were read. Returns the exit status. */
int wire_run(bool client, const char *expect);

#endif
