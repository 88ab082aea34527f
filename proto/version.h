#ifndef PROTO_VERSION_H
#define PROTO_VERSION_H

#define CPR_VERSION "0.1.0"

#endif
