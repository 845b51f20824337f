"""Articulated creatures (chains, animals, people): their build, their motion, their place in a room."""
