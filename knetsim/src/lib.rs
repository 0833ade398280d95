//! The lab: boots the clusters, supervises their daemons, gives the prompt
